"""Students that start as a part of their teacher: which part the config asks for.

What is not set is the teacher's. The numbers of a size, such as `student=s`, describe a model from
scratch, and say nothing of a part: they are set to null, and keys that are set in their place stay.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, flag_override

from lightning_distill.config.catalog import numbers_of_size
from lightning_distill.config.settings import Settings, is_pretrained, typed_keys
from lightning_distill.errors import unknown_name

SIZE = ("num_hidden_layers", "hidden_size", "num_attention_heads")
CHOICES = ("uniform", "influence", "first", "last")  # of `student.layers`


def forget_size(cfg: DictConfig, settings: Settings) -> None:
    """Sets to null what only the chosen size sets. settings: interpolations unresolved."""
    student = settings.get("student")
    if not isinstance(student, dict) or student.get("initialize") != "teacher_layers":
        return
    typed = typed_keys(settings)
    size = numbers_of_size(settings["hydra"]["runtime"]["choices"].get("student"))
    with flag_override(cfg, ["readonly", "struct"], False):
        for key, value in size.items():
            if student.get(key) == value and f"student.{key}" not in typed:
                cfg.student[key] = None


def number_of_layers(student: Settings) -> int | None:
    """How many of the teacher's layers are kept; None for all."""
    layers = student["layers"]
    if isinstance(layers, int):
        return layers
    if isinstance(layers, list):
        return len(layers)
    count: int | None = student.get("num_hidden_layers")
    return count


def problems_of_initialization(settings: Settings) -> Iterator[str]:
    student = settings["student"]
    if student["initialize"] != "teacher_layers":
        for role in ("teacher", "student"):
            for key in SIZE:
                if settings[role].get(key, 1) is None:
                    yield f"{role}.{key}=null is only for student.initialize=teacher_layers"
        if (layers := student.get("layers", "uniform")) != "uniform":
            yield (
                f"student.layers={layers} chooses among the teacher's layers; set "
                "student.initialize=teacher_layers"
            )
        return
    start = "student.initialize=teacher_layers"
    if is_pretrained(student):
        yield (
            f"{start} takes the teacher's weights, and this student brings its own; leave out "
            "student=, or set student.initialize=random"
        )
        return
    if "num_hidden_layers" not in student:
        yield f"{start} is for models with a list of layers; set student.initialize=random"
        return
    if problems := [*problems_of_layers(student["layers"], student["num_hidden_layers"])]:
        yield from problems
    elif number_of_layers(student) is None and not any(student.get(key) for key in SIZE):
        yield f"{start} keeps the whole teacher; set how many layers, as in student.layers=8"


def problems_of_layers(layers: Any, count: int | None) -> Iterator[str]:
    """layers: of `student.layers`. count: of `student.num_hidden_layers`."""
    given = f"student.layers={layers}"
    if isinstance(layers, bool) or not isinstance(layers, str | int | list):
        yield f"{given} must be {', '.join(CHOICES)}, a number of layers, or a list"
    elif isinstance(layers, str) and layers not in CHOICES:
        also = ["a number", "a list"]
        yield str(unknown_name("student.layers", layers, [*CHOICES, *also])).rstrip(".")
    elif isinstance(layers, int) and layers < 1:
        yield f"{given} must be at least 1 layer"
    elif isinstance(layers, list) and not all(type(one) is int and one > 0 for one in layers):
        yield f"{given} must list numbers of layers, counted from 1"
    elif isinstance(layers, list) and (layers != sorted(set(layers)) or not layers):
        yield f"{given} must name each layer once, in their order"
    elif isinstance(layers, list | int) and count is not None:
        kept = layers if isinstance(layers, int) else len(layers)
        if kept != count:
            yield f"{given} keeps {kept} layers, and student.num_hidden_layers is {count}"
