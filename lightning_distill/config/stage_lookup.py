"""From `stage=` to its declaration, in the package or in a module of the user's."""

from contextlib import suppress
from importlib import import_module
from typing import Any

from lightning_distill.config.allowlist import ALLOW, modules_of_user, user_allows
from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.stages import STAGES, Stage

# What other programs call them.
OTHER_NAMES = {
    **dict.fromkeys(("train", "fit", "run", "student"), "distill"),
    **dict.fromkeys(("test", "eval", "validate"), "evaluate"),
    **dict.fromkeys(("generate", "infer", "predict"), "chat"),
}


def find_stage(name: Any) -> Stage:
    """The stage of this name. Raises ConfigError where there is none, or it is not allowed."""
    if isinstance(name, str) and name in STAGES:
        return STAGES[name]
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module and (meant := OTHER_NAMES.get(str(name))):
        raise ConfigError(f"stage={name} does not exist. Did you mean stage={meant}?")
    if not module:
        raise unknown_name("stage", name, STAGES)
    if not user_allows(name):
        raise ConfigError(
            f"stage={name}: config may not import this. If you trust it, put {ALLOW}={module} in "
            "front of the command."
        )
    try:
        stage = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"stage={name} cannot be imported: {error}.") from error
    if not isinstance(stage, Stage):
        raise ConfigError(f"stage={name} is not a lightning_distill.stages.Stage.")
    return stage


def stages_of_user() -> dict[str, Stage]:
    """The stages in the modules that LIGHTNING_DISTILL_ALLOW names, by their dotted names."""
    stages: dict[str, Stage] = {}
    for name in modules_of_user():
        with suppress(ImportError):  # it names a class
            module = import_module(name)
            there = vars(module).items()
            stages |= {f"{name}.{key}": one for key, one in there if isinstance(one, Stage)}
    return stages
