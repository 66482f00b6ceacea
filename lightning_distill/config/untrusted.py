"""Checks of configs that may be a stranger's, before Hydra builds or writes anything.

`install` makes Hydra call them for every config that it composes: a config calls what
`config/allowlist.py` has, sets no environment variable that loads code, and opens no log elsewhere.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hydra.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.instantiate import _instantiate2
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from lightning_distill.config.allowlist import (
    ALLOW,
    RUN_CODE,
    allowed_by_user,
    check_targets,
    locate,
    user_allows,
)
from lightning_distill.errors import ConfigError

# The value in our own conf/hydra/launcher/submitit_local.yaml.
OUR_SETUP = ["export CUDA_VISIBLE_DEVICES=${visible_gpus:}"]

# Variables that a config may set; others could load a library, or send a key elsewhere.
ENVIRONMENT = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "NCCL_DEBUG",
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "WANDB_MODE",
)
# Classes and streams of logs; other handlers send records away, or read a config of their own.
LOGGING = (
    "logging.FileHandler",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "lightning_distill.screen.ScreenHandler",
    "rich.logging.RichHandler",
    "colorlog.ColoredFormatter",
    "ext://sys.stdout",
    "ext://sys.stderr",
)


def install(
    *more: Callable[[Any], None], adjust: Iterable[Callable[[DictConfig, Any], None]]
) -> None:
    """Makes Hydra check each composed config, and each name that it looks up.

    more: further checks of the settings, called before anything is written or built from them.
    adjust: called last, with the config and its settings; they may change the config.
    """
    if hydra.utils._locate is locate:
        return
    compose = ConfigLoaderImpl.load_configuration

    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = compose(self, *args, **kwargs)
        settings = OmegaConf.to_container(cfg, resolve=False)
        for one in (check, *more):
            one(settings)
        for change in adjust:
            change(cfg, settings)
        return cfg

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    hydra.utils._locate = _instantiate2._locate = locate


def check(settings: Any, where: str = "") -> None:
    """Raises ConfigError for what a config may not run or set.

    settings: with or without interpolations resolved. where: prefix of the messages.
    """
    check_targets(settings, where)
    problems = [
        f"{key} runs code that is not ours; give it on the command line, or allow it by "
        f"{ALLOW}={key}"
        for key in RUN_CODE
        if (value := _value_at(settings, key)) and value != OUR_SETUP and not may_run_code(key)
    ]
    if isinstance(hydra_node := settings.get("hydra", {}), dict):
        problems += [*_problems_of_environment(hydra_node), *_problems_of_logging(hydra_node)]
    else:
        problems.append("hydra must be written out")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def may_run_code(key: str) -> bool:
    """Whether the user has allowed a key of RUN_CODE."""
    return key in allowed_by_user()


def allow_typed_keys(arguments: list[str]) -> None:
    """Allows the keys of RUN_CODE that the command line sets, here and in child processes."""
    typed = [arg.lstrip("+") for arg in arguments]
    keys = [key for key in RUN_CODE if any(arg.startswith(f"{key}=") for arg in typed)]
    # The key of a role, or of one of several teachers.
    if any(re.search("trust_remote_code.*true", arg, re.IGNORECASE) for arg in typed):
        keys.append("trust_remote_code")
    if keys:
        os.environ[ALLOW] = ",".join([*allowed_by_user(), *keys])


def check_flags(arguments: list[str]) -> None:
    """Raises ConfigError for --experimental-rerun, of which argparse accepts any abbreviation."""
    if any(one.startswith("--e") for one in arguments):
        raise ConfigError(
            "--experimental-rerun reads a pickle, which can run any code. Give the overrides of "
            ".hydra/overrides.yaml again instead."
        )


def environment(name: str, *default: str | None) -> str | None:
    """OmegaConf's `${oc.env:NAME}`, except for secrets: configs are saved, logged and uploaded."""
    if re.search("KEY|TOKEN|SECRET|PASS|CREDENTIAL", name, re.IGNORECASE):
        raise ConfigError(
            f"${{oc.env:{name}}} would save a key beside the results; what needs it reads "
            "the environment variable by itself. Leave it out of the settings."
        )
    return oc.env(name, *default)


def _value_at(settings: Any, key: str) -> Any:
    """The value of a key, or the interpolation of a node around it."""
    for part in key.split("."):
        if isinstance(settings, str):
            return settings
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _problems_of_environment(hydra_node: dict[str, Any]) -> Iterator[str]:
    job = hydra_node.get("job") or {}
    if isinstance(job, str):
        yield "hydra.job must be written out"
        return
    variables = job.get("env_set") or {}
    if isinstance(variables, str):
        yield "hydra.job.env_set must be written out"
        return
    for name in variables:
        if name not in ENVIRONMENT:
            yield f"hydra.job.env_set.{name} may not be set here; set {name} in the shell"


def _problems_of_logging(hydra_node: dict[str, Any]) -> Iterator[str]:
    """What `logging.config` would call or import, and files in other folders."""
    for name in ("job_logging", "hydra_logging"):
        for key, value in _leaves(hydra_node.get(name), f"hydra.{name}"):
            called = key.rpartition(".")[2] in ("class", "()")
            # The paths of Hydra's own configs.
            plain = value.removeprefix("${hydra.runtime.output_dir}/${hydra.job.name}")
            plain = plain.removeprefix("${hydra.runtime.output_dir}/")
            if not (called or "://" in value or "${" in plain):
                continue
            if value not in LOGGING and not (called and user_allows(value)):
                yield f"{key}={value} may not be used by a log"


def _leaves(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, one in node.items():
            yield from _leaves(one, f"{key}.{name}")
    elif isinstance(node, list):
        for one in node:
            yield from _leaves(one, key)
    elif isinstance(node, str):
        yield key, node
