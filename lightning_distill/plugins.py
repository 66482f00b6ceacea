"""Hydra's plugins, launchers and sweepers, under configs of ours."""

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from lightning_distill import ConfigError
from lightning_distill.errors import CONF


def put_ours_first() -> None:
    """Takes the plugins' own configs away where conf/hydra has one of the same name.

    Hydra would merge ours into theirs, with a warning, and refuse the one that has defaults.
    """
    Plugins.instance()  # has them store their configs
    for file in CONF.glob("hydra/**/*.yaml"):
        theirs = ConfigStore.instance().repo
        for group in file.relative_to(CONF).parts[:-1]:
            theirs = theirs.get(group, {})
        theirs.pop(file.name, None)


def check_plugins(config: DictConfig) -> None:
    """Raises ConfigError where the chosen launcher or sweeper is not installed.

    Their configs are ours, which are there regardless.
    """
    for role in ("launcher", "sweeper"):
        target = config.hydra[role]._target_
        if target in Plugins.instance().class_name_to_class:
            continue
        extra = target.split(".")[1].removeprefix("hydra_").removesuffix(f"_{role}")
        chosen = f"hydra/{role}={config.hydra.runtime.choices[f'hydra/{role}']}"
        raise ConfigError(f"{chosen} needs the extra: pip install 'lightning_distill[{extra}]'")
