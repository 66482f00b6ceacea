"""Launchers and sweepers of Hydra's plugins, with config files of ours."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from lightning_distill.config.catalog import CONF
from lightning_distill.errors import Refused


def prefer_own_configs() -> None:
    """Removes the plugins' own configs where conf/hydra has one of the same name.

    Hydra would merge the two, with a warning, and refuse one that has defaults.
    """
    Plugins.instance()  # stores the plugins' configs
    for file in CONF.glob("hydra/**/*.yaml"):
        node = ConfigStore.instance().repo
        for group in file.relative_to(CONF).parts[:-1]:
            node = node.get(group, {})
        node.pop(file.name, None)


def check_plugins(config: DictConfig) -> None:
    """Raises Refused for a launcher or sweeper that is not installed, or cannot find the outputs.

    The config files of plugins are ours, and can be chosen without the plugin.
    """
    address = OmegaConf.select(config, "hydra.launcher.ray.init.address")
    if address and not Path(config.paths.outputs).is_absolute():
        raise Refused(
            f"hydra.launcher.ray.init.address={address}: jobs of a cluster start in a folder of "
            f"its own; paths.outputs={config.paths.outputs} must be an absolute path."
        )
    for role in ("launcher", "sweeper"):
        target = config.hydra[role]._target_
        if target in Plugins.instance().class_name_to_class:
            continue
        extra = target.split(".")[1].removeprefix("hydra_").removesuffix(f"_{role}")
        chosen = f"hydra/{role}={config.hydra.runtime.choices[f'hydra/{role}']}"
        raise Refused(f"{chosen} needs the extra: pip install 'lightning_distill[{extra}]'")
