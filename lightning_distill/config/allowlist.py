"""Which classes and functions a config may name.

Hydra calls what `_target_` names, and a config may be a stranger's: from --config-dir, or the
`.hydra/config.yaml` of a run. Only what is listed here is called. The environment variable
LIGHTNING_DISTILL_ALLOW adds to it (`my_package,other.module`); no file can set it.

`check_targets` reads a config and names the key of what it refuses. Hydra looks names up by
`locate`, which refuses the same, and what an interpolation produced.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from hydra._internal.utils import _locate

from lightning_distill.errors import ConfigError

ALLOW = "LIGHTNING_DISTILL_ALLOW"

# Keys that run code outside of the package: what they name, or what comes with a model. The command
# line can set them, a file alone cannot.
RUN_CODE = (
    "trust_remote_code",
    "export.converter",
    "evaluate.task_path",
    "hydra.launcher.setup",
    "hydra.launcher.additional_parameters",
    "hydra.launcher.ray.init.runtime_env",
    "hydra.launcher.ray.remote.runtime_env",
)

# Classes and functions defined in these; not their methods, and not what they import.
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
# Each by the name that configs use, and by that of its definition.
CALLABLES = (
    "lightning_distill.models.pretrained.load",
    "lightning_distill.models.gguf.load",
    "lightning_distill.models.api_teacher.APITeacher",
    "lightning_distill.models.sizes.build",
    "lightning_distill.models.vision.convnet",
    "lightning_distill.distributed.fsdp.FSDP2Strategy",
    "lightning_distill.planning.step_profiler.StepProfiler",
    "lightning_distill.cli.hydra_callback.SweepCallback",
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


def check_targets(settings: Any, where: str = "") -> None:
    """Raises ConfigError for names that may not be called, except those in interpolations."""
    for key, name in _names(settings, ""):
        if "${" not in name and not _is_allowed(name):
            raise ConfigError(f"{where}{key}={_refusal(name)}")


def check_imports(settings: Any) -> None:
    """Raises ConfigError for allowed names that lead to something else once they are imported.

    Called before training, which would otherwise come before some of the imports.
    """
    for _, name in _names(settings, ""):
        if "${" not in name:
            with suppress(ImportError):  # reported where it is needed
                locate(name)


def locate(path: str) -> Any:
    """The object of a dotted name, imported if need be. Hydra's `_locate` with a check."""
    if not _is_allowed(path):
        raise ConfigError(_refusal(path))
    located = _locate(path)
    name = getattr(located, "__qualname__", type(located).__qualname__)
    definition = f"{getattr(located, '__module__', type(located).__module__)}.{name}"
    # Methods are not allowed with their class: a strategy's load_checkpoint reads pickles.
    if not _is_allowed(definition) or ("." in name and not user_allows(definition)):
        raise ConfigError(f"{path} is {_refusal(definition)}")
    return located


def user_allows(name: str) -> bool:
    """Whether LIGHTNING_DISTILL_ALLOW has the name, or a module or package around it."""
    return any(f"{name}.".startswith(f"{one}.") for one in allowed_by_user())


def allowed_by_user() -> list[str]:
    given = os.environ.get(ALLOW, "").split(",")
    return [one.strip().rstrip(".") for one in given if one.strip()]


def modules_of_user() -> list[str]:
    """The modules and names among them, without the keys of RUN_CODE.

    A key may be the name of a package: `evaluate` of `evaluate.task_path` is one, which imports
    torch.
    """
    return [one for one in allowed_by_user() if one not in RUN_CODE]


def _is_allowed(name: str) -> bool:
    return name in CALLABLES or name.startswith(PACKAGES) or user_allows(name)


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
