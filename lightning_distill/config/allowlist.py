"""What settings may call.

A configuration names classes and functions (`_target_`), and may be a stranger's: from
--config-dir, or the `.hydra/config.yaml` of a run. Only what is listed here is called. The
environment variable LIGHTNING_DISTILL_ALLOW adds to it, `my_package,other.module`, which no file
can set.

`check` reads every configuration as soon as it is composed, before Hydra makes its callbacks,
launcher and sweeper of it, and names the key. What an interpolation makes later, and what is found
under a name, shows where Hydra turns names into objects, in `_located`; nothing gets past that.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import hydra.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.instantiate import _instantiate2
from hydra._internal.utils import _locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from lightning_distill.errors import ConfigError

ALLOW = "LIGHTNING_DISTILL_ALLOW"

# Classes and functions in these: neither their methods nor what else they have imported.
PACKAGES = (
    "lightning_distill.losses.",
    "lightning_distill.data.",
    "lightning_distill.transfer.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.fabric.plugins.",  # where some of those plugins are defined
    "torch.optim.",
    "transformers.get_",  # its schedules
    "transformers.optimization.",
    "optuna.samplers.",
    "hydra_plugins.",
    "hydra._internal.core_plugins.",
)
# Each as it is written, and where it is defined.
CALLABLES = (
    "lightning_distill.models.pretrained.load",
    "lightning_distill.models.api_teacher.APITeacher",
    "lightning_distill.models.sizes.build",
    "lightning_distill.models.vision.convnet",
    "lightning_distill.distributed.fsdp.FSDP2Strategy",
    "lightning_distill.planning.step_profiler.StepProfiler",
    "lightning_distill.cli.hydra_callback.Summary",
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer.trainer.Trainer",
    "transformers.Adafactor",
    "wandb.init",
    "wandb.sdk.wandb_init.init",
    "hydra.utils.get_class",
    "hydra.utils.get_method",
    "hydra.utils.get_object",
    "hydra.utils.get_static_method",
)
LOOKUPS = ("get_class", "get_method", "get_static_method", "get_object")  # of hydra.utils

# Settings that have other code run: what they name, or what comes with a model. A file alone
# cannot set them; the command line can, which is the user's.
RUN_CODE = (
    "trust_remote_code",
    "export.converter",
    "evaluate.task_path",
    "hydra.launcher.setup",
    "hydra.launcher.additional_parameters",
    "hydra.launcher.ray.init.runtime_env",
    "hydra.launcher.ray.remote.runtime_env",
)
# The commands of our own conf/hydra/launcher/submitit_local.yaml.
OUR_SETUP = ["export CUDA_VISIBLE_DEVICES=${visible_gpus:}"]

# Others could have a child process load a library, or send a key elsewhere.
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
# What a log may be made of; other handlers send it away, or read a configuration of their own.
LOGGING = (
    "logging.FileHandler",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "rich.logging.RichHandler",
    "colorlog.ColoredFormatter",
    "ext://sys.stdout",
    "ext://sys.stderr",
)


def install(*more: Callable[[DictConfig], None]) -> None:
    """Puts the checks where Hydra composes configurations and looks names up.

    more: what else a composed configuration has to pass before anything is written or made of it.
    """
    if hydra.utils._locate is _located:
        return
    composed = ConfigLoaderImpl.load_configuration

    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = composed(self, *args, **kwargs)
        for one in (check, *more):
            one(cfg)
        return cfg

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    hydra.utils._locate = _instantiate2._locate = _located


def allow_what_is_typed(arguments: list[str]) -> None:
    """Of RUN_CODE, for this process and those that it starts."""
    typed = [arg.lstrip("+") for arg in arguments]
    found = [key for key in RUN_CODE if any(arg.startswith(f"{key}=") for arg in typed)]
    # Also of a role, or of one of several teachers.
    if any(re.search("trust_remote_code.*true", arg, re.IGNORECASE) for arg in typed):
        found.append("trust_remote_code")
    if found:
        os.environ[ALLOW] = ",".join([*_allowed_besides(), *found])


def check_flags(arguments: list[str]) -> None:
    """Raises ConfigError for --experimental-rerun, which argparse takes by its first letters."""
    if any(one.startswith("--e") for one in arguments):
        raise ConfigError(
            "--experimental-rerun reads a pickle, which can run any code. Give the overrides of "
            ".hydra/overrides.yaml again instead."
        )


def environment(name: str, *default: str | None) -> str | None:
    """`${oc.env:NAME}` as OmegaConf has it, but for keys: settings are saved, logged and shown."""
    if re.search("KEY|TOKEN|SECRET|PASS|CREDENTIAL", name, re.IGNORECASE):
        raise ConfigError(
            f"${{oc.env:{name}}} would save a key beside the results; what needs it reads "
            "the environment variable by itself. Leave it out of the settings."
        )
    return oc.env(name, *default)


def runs_code(key: str) -> bool:
    """Whether the user has said so of this one of RUN_CODE."""
    return key in _allowed_besides()


def check(cfg: DictConfig, where: str = "") -> None:
    """Raises ConfigError for what a composed configuration may not have run, by its key."""
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    check_targets(settings, where)
    problems = [
        f"{key} runs code that is not ours; give it on the command line, or allow it by "
        f"{ALLOW}={key}"
        for key in RUN_CODE
        if (value := _at(settings, key)) and value != OUR_SETUP and not runs_code(key)
    ]
    if isinstance(hydra_node := settings.get("hydra", {}), dict):
        problems += [*_of_environment(hydra_node), *_of_logging(hydra_node)]
    else:
        problems.append("hydra must be written out")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def check_targets(settings: Any, where: str = "") -> None:
    """Raises ConfigError for names that may not be called; those in interpolations show later."""
    for key, name in _names(settings, ""):
        if "${" not in name and not _is_allowed(name):
            raise ConfigError(f"{where}{key}={_refusal(name)}")


def find(cfg: DictConfig) -> None:
    """Raises ConfigError for names under which something else is found than they say, before
    anything is trained that they are needed after."""
    for _, name in _names(OmegaConf.to_container(cfg, resolve=False), ""):
        if "${" not in name:
            with suppress(ImportError):  # said where it is needed
                _located(name)


def _refusal(name: str) -> str:
    return (
        f"{name}: settings may not call this. If you trust it, and where these settings are from, "
        f"put {ALLOW}={name} in front of the command."
    )


def _names(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """The key of everything that is called or looked up by its name, and that name."""
    if isinstance(node, list):
        for place, one in enumerate(node):
            yield from _names(one, f"{key}[{place}]")
    if not isinstance(node, dict):
        return
    dot = f"{key}." if key else ""
    if isinstance(target := node.get("_target_"), str):
        yield f"{dot}_target_", target
        if target.rpartition(".")[2] in LOOKUPS:
            given = node.get("_args_")
            first = given[:1] if isinstance(given, list) else []
            yield from ((f"{dot}path", str(path)) for path in [node.get("path"), *first] if path)
    for name, one in node.items():
        yield from _names(one, f"{dot}{name}")


def _located(path: str) -> Any:
    """In the place of Hydra's `_locate`: the object of a dotted name, imported if need be."""
    if not _is_allowed(path):
        raise ConfigError(_refusal(path))
    found = _locate(path)
    name = getattr(found, "__qualname__", type(found).__qualname__)
    home = f"{getattr(found, '__module__', type(found).__module__)}.{name}"
    # A method can do what its class is not called for: a strategy's reads pickles.
    if not _is_allowed(home) or ("." in name and not _is_allowed_besides(home)):
        raise ConfigError(f"{path} is {_refusal(home)}")
    return found


def _is_allowed(name: str) -> bool:
    return name in CALLABLES or name.startswith(PACKAGES) or _is_allowed_besides(name)


def _is_allowed_besides(name: str) -> bool:
    return any(f"{name}.".startswith(f"{one}.") for one in _allowed_besides())


def _allowed_besides() -> list[str]:
    given = os.environ.get(ALLOW, "").split(",")
    return [one.strip().rstrip(".") for one in given if one.strip()]


def _at(settings: Any, key: str) -> Any:
    """What is set there, or the interpolation that might set it."""
    for part in key.split("."):
        if isinstance(settings, str):
            return settings
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _of_environment(hydra_node: dict[str, Any]) -> Iterator[str]:
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


def _of_logging(hydra_node: dict[str, Any]) -> Iterator[str]:
    """What `logging.config` would call or import."""
    for name in ("job_logging", "hydra_logging"):
        for key, value in _leaves(hydra_node.get(name), f"hydra.{name}"):
            called = key.rpartition(".")[2] in ("class", "()")
            # Of Hydra's own, which is a path.
            plain = value.removeprefix("${hydra.runtime.output_dir}/${hydra.job.name}")
            plain = plain.removeprefix("${hydra.runtime.output_dir}/")
            if not (called or "://" in value or "${" in plain):
                continue
            if value not in LOGGING and not (called and _is_allowed_besides(value)):
                yield f"{key}={value} is nothing that a log may be made with"


def _leaves(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, one in node.items():
            yield from _leaves(one, f"{key}.{name}")
    elif isinstance(node, list):
        for one in node:
            yield from _leaves(one, key)
    elif isinstance(node, str):
        yield key, node
