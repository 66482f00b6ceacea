"""The usual values of the settings that follow from what is trained, and their only place.

Config files write `${usual:lr}`. `fill_in` replaces it when a config is composed, so that
`--cfg job` shows the value; another value in a file or on the command line wins.

What is trained is

- `size`: a model from scratch. It is small and has far to go: a high rate, short blocks;
- `pretrained`: all weights of a pretrained model. They are good, and a high rate destroys what they
  know. Blocks are long, as such models are used on long texts;
- `part`: layers of a pretrained teacher. They are good, and do not fit each other any more;
- `small_part`: layers of a teacher that is trained here from scratch. It is narrow, and the rate
  rises as the width falls; its blocks are those of a size;
- `adapters`: LoRA's. They start at zero, and change the model less than its own weights would.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

from lightning_distill.config.schema import is_number
from lightning_distill.config.settings import Settings, is_pretrained
from lightning_distill.config.training_length import trained_for

# docs/concepts/defaults.md has the measurements. A setting not here for a size depends on the data
# or the role, and the config file says it: `${usual:batch_size,4}`.
USUAL: dict[str, dict[str, Any]] = {
    "lr": {
        "size": 6e-3,
        "pretrained": 5e-5,
        "part": 2e-4,
        "small_part": 2e-3,
        "adapters": 2e-4,
    },
    # Not 0.05 and 0.1, with which torch divides by zero in runs of 20 and of 10 steps.
    "pct_start": {
        "size": 0.0501,
        "pretrained": 0.1001,
        "part": 0.1001,
        "small_part": 0.0501,
        "adapters": 0.1001,
    },
    "sequence_length": {"pretrained": 512, "part": 512, "adapters": 512},
    "batch_size": {"pretrained": 8, "part": 8, "adapters": 8},
    "max_steps": {"pretrained": 500, "part": 1000, "adapters": 500},
}
DESCRIPTIONS = {
    "size": "a model from scratch",
    "pretrained": "a pretrained model",
    "part": "a part of a pretrained teacher",
    "small_part": "a part of a teacher trained from scratch",
    "adapters": "adapters",
}
HIGH = 10  # times the usual rate
ADAMS = tuple(f"torch.optim.{name}" for name in ("Adam", "AdamW", "NAdam", "RAdam"))


def usual(key: str, of_size: Any = None, *, _parent_: DictConfig, _root_: DictConfig) -> Any:
    """The resolver `${usual:key,value of a size}`.

    Of `teacher.*` it is what the teacher needs, and else what the student needs.
    """
    role = _parent_._get_full_key("").split(".")[0]
    kind = what_is_trained(_root_, "teacher" if role == "teacher" else "student")
    return USUAL[key].get(kind, of_size)


def usual_of_size(interpolation: str) -> Any:
    """The value that `${usual:…}` has for a model from scratch."""
    key, _, of_size = interpolation.removeprefix("${usual:").removesuffix("}").partition(",")
    return USUAL[key].get("size", of_size)


def fill_in(cfg: DictConfig, settings: Settings) -> None:
    """Writes the usual values into a composed config. settings: its interpolations unresolved."""
    with flag_override(cfg, ["readonly", "struct"], False):
        for key in _keys_of_usual(settings):
            OmegaConf.update(cfg, key, OmegaConf.select(cfg, key))


def _keys_of_usual(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _keys_of_usual(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value.startswith("${usual:"):
            yield f"{prefix}{name}"


def what_is_trained(cfg: Mapping[str, Any], role: str) -> str:
    """The kind of what a role trains, a key of `USUAL`. cfg: a config, or settings."""
    node = cfg.get(role)
    if not isinstance(node, Mapping):  # refused later
        return "size"
    lora = node.get("lora")
    if isinstance(lora, Mapping) and lora.get("rank"):
        return "adapters"
    if role == "student" and node.get("initialize") == "teacher_layers":
        return "small_part" if what_is_trained(cfg, "teacher") == "size" else "part"
    return "pretrained" if is_pretrained(node) else "size"


def warnings_of_rates(settings: Settings) -> Iterator[str]:
    """Learning rates far above what is usual for what they train."""
    for role, at in (("teacher", "teacher."), ("student", "")):
        node = settings["teacher"] if at else settings
        optimizer, kind = node["optimizer"], what_is_trained(settings, role)
        rate, usual_rate = optimizer.get("lr"), USUAL["lr"][kind]
        if not trained_for(settings[role]) or optimizer.get("_target_") not in ADAMS:
            continue
        if is_number(rate) and rate > HIGH * usual_rate:
            yield (
                f"{at}optimizer.lr={rate:g} is more than {HIGH} times the usual {usual_rate:g} for "
                f"{DESCRIPTIONS[kind]}: it may destroy what the {role} starts with"
            )
