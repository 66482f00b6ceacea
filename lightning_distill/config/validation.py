"""Checks of the composed config, before anything is imported or written."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill.config.catalog import is_always_there
from lightning_distill.config.model_settings import (
    problems_of_api_teacher,
    problems_of_lora,
    problems_of_quantization,
    problems_of_secrets,
    problems_of_server,
)
from lightning_distill.config.schema import SCHEMA, Key, is_number
from lightning_distill.config.unknown_keys import is_foreign
from lightning_distill.errors import ConfigError

BUILT = ("data", "teacher", "student", "transfer", "loss")  # nodes that build our classes
ABSENT = object()  # in place of a key that the chosen options do not have


def check(cfg: DictConfig, more: Iterable[str] = ()) -> None:
    """Raises ConfigError with every problem of a job's config. more: problems found elsewhere."""
    _check_structure(cfg)
    problems: list[str] = []
    for one in each_teacher(cfg):
        problems += [*_problems_of_values(one), *_problems_of_heads(one)]
        problems += [*problems_of_quantization(one), *problems_of_lora(one)]
    problems += [*_problems_of_weights(cfg), *_problems_of_initialization(cfg)]
    problems += [*_problems_of_sweep(cfg), *_problems_of_streaming(cfg)]
    problems += [*_problems_of_callbacks(cfg.trainer), *_problems_of_tasks(cfg.evaluate.tasks)]
    if "url" in set(cfg.teacher):  # `in` the node itself is false for a key without a value
        problems += [*problems_of_server(cfg.teacher), *problems_of_api_teacher(cfg)]
    _refuse([*problems, *more])


def check_sweep(cfg: DictConfig, more: Iterable[str] = ()) -> None:
    """Raises ConfigError for what is wrong with all jobs of a sweep, before the first begins."""
    _check_structure(cfg)
    numbers = [key for key, one in SCHEMA.items() if one.type in ("integer", "number")]
    problems = [*_problems_of_values(cfg, [*numbers, "sweep.rerun"]), *_problems_of_sweep(cfg)]
    _refuse([*problems, *more])


def check_secrets(cfg: DictConfig) -> None:
    """Raises ConfigError for a server's key in the config, before Hydra writes it to files."""
    teacher: Any = OmegaConf.to_container(cfg, resolve=False)
    teacher = teacher.get("teacher")
    if not isinstance(teacher, dict) or "url" not in teacher:
        return
    given = OmegaConf.select(cfg, "hydra.overrides.task") or []
    url = "" if OmegaConf.is_missing(cfg.teacher, "url") else teacher["url"]
    urls = [url, *(one for one in given if "teacher.url=" in one)]
    variable = teacher.get("key_variable")
    known = None if variable is None or "${" in str(variable) else str(variable)
    _refuse([problem for one in urls for problem in problems_of_secrets(str(one), known)])


def each_teacher(cfg: DictConfig) -> list[DictConfig]:
    """The config as each of `teacher.members` has it; [cfg] without members."""
    members = cfg.teacher.get("members")
    if not members:
        return [cfg]
    is_list = isinstance(members, list | ListConfig)
    if not is_list or not all(isinstance(member, Mapping | DictConfig) for member in members):
        raise ConfigError(
            f"teacher.members={members} must list what each teacher has of its own, as in "
            "'teacher.members=[{seed: 0}, {seed: 1}]'."
        )
    configs = []
    for member in members:
        one = cfg.copy()
        one.teacher = OmegaConf.merge(cfg.teacher, member)
        configs.append(one)
    return configs


def require(
    key: str, value: Any, least: float, most: float = math.inf, below: bool = False
) -> None:
    """Raises ConfigError unless value is a number from least to most; below: less than most."""
    high = None if most == math.inf else most
    bound = Key(
        "number", "", minimum=least, maximum=None if below else high, below=high if below else None
    )
    _refuse([*bound.problems(key, value)])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)) + ".")


def _check_structure(cfg: DictConfig) -> None:
    """Nodes, single values and texts, which the other checks rely on."""
    shape = [key for key, one in SCHEMA.items() if one.type in ("node", "value")]
    texts = [key for key, one in SCHEMA.items() if one.type == "text" and not one.choices]
    problems = [*_problems_of_values(cfg, shape), *_removed_keys(cfg)]
    problems += _problems_of_values(cfg, texts)
    if isinstance(cfg.name, ListConfig | DictConfig) or not _is_below(str(cfg.name or "")):
        problems.append(f"name={cfg.name} must be the name of a folder below <paths.outputs>/runs")
    _refuse(problems)
    outputs = Path(cfg.paths.outputs)
    existing = next(path for path in (outputs, *outputs.resolve().parents) if path.exists())
    if not existing.is_dir():
        _refuse([f"paths.outputs={outputs} must be a folder, and {existing} is a file"])


def _problems_of_values(cfg: DictConfig, keys: Iterable[str] = SCHEMA) -> Iterator[str]:
    """What the schema refuses. A class from outside of the package may have the same names for
    arguments of its own, so that only the keys of config.yaml are checked in its node."""
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    foreign = {name for name in BUILT if is_foreign(settings.get(name))}
    for key in keys:
        declared_there = key.split(".")[0] in foreign and not is_always_there(key)
        if SCHEMA[key].is_checked and not declared_there:
            value = OmegaConf.select(cfg, key, default=ABSENT)
            if value is not ABSENT:
                yield from SCHEMA[key].problems(key, value)


def _removed_keys(cfg: DictConfig) -> Iterator[str]:
    for key in SCHEMA:
        if is_always_there(key) and not key.startswith("hydra."):
            parent = OmegaConf.select(cfg, key.rpartition(".")[0], default=None)
            reported = "." in key and not isinstance(parent, DictConfig)  # as a problem of its node
            if not reported and OmegaConf.select(cfg, key, default=ABSENT) is ABSENT:
                yield f"{key} is not there any more; leave ~{key} out of the command"


def _is_below(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _problems_of_callbacks(trainer: DictConfig) -> Iterator[str]:
    """Lightning accepts a list of anything, and fails when it calls one of them."""
    for key in ("callbacks", "plugins"):
        given = trainer.get(key)
        items = list(given) if isinstance(given, ListConfig) else [given] * (given is not None)
        nodes = [one for one in items if isinstance(one, DictConfig | dict) and "_target_" in one]
        if len(nodes) < len(items):
            yield f"trainer.{key}={given} must be a list of nodes with a _target_"


def _problems_of_weights(cfg: DictConfig) -> Iterator[str]:
    weights, count = cfg.teacher.get("weights"), len(each_teacher(cfg))
    if weights is None:
        return
    if isinstance(weights, str | int | float) or len(weights) != count:
        given = 1 if isinstance(weights, str | int | float) else len(weights)
        yield (
            f"teacher.weights={weights} gives {given} for {count} "
            f"teacher{'s' if count > 1 else ''}; give one for each of teacher.members"
        )
    elif not all(is_number(weight) and weight > 0 for weight in weights):
        yield f"teacher.weights={weights} must be numbers above 0"


def _problems_of_initialization(cfg: DictConfig) -> Iterator[str]:
    if cfg.student.initialize == "teacher_layers" and "name" in cfg.student:
        yield (
            "student.initialize=teacher_layers takes the teacher's weights, student=pretrained "
            "brings its own; choose a size, as in student=s, or student.initialize=random"
        )
    elif cfg.student.initialize == "teacher_layers" and "num_hidden_layers" not in cfg.student:
        yield (
            "student.initialize=teacher_layers needs a size, as in student=s, which says how much "
            "of the teacher to keep; choose one, or student.initialize=random"
        )


def _problems_of_heads(cfg: DictConfig) -> Iterator[str]:
    for role in ("teacher", "student"):
        node = cfg[role]
        if node.get("initialize") == "teacher_layers":  # it has the teacher's heads
            continue
        width, heads = node.get("hidden_size"), node.get("num_attention_heads")
        # Rotary positions turn pairs of each head's channels.
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % (2 * heads):
            yield (
                f"{role}.hidden_size={width} must be a multiple of 2 × "
                f"{role}.num_attention_heads={heads}"
            )


def _problems_of_streaming(cfg: DictConfig) -> Iterator[str]:
    if cfg.data.get("streaming") is not True:
        return
    transfer: Any = get_class(cfg.transfer._target_)
    if prepares := transfer.prepares:
        yield (
            f"data.streaming=true has no end, and this transfer prepares the {prepares} of all "
            "blocks first; choose transfer=online or on_policy, or set data.streaming=false"
        )
    elif cfg.transfer.get("num_blocks") is not None:
        yield (
            f"transfer.num_blocks={cfg.transfer.num_blocks} chooses from a text of known length, "
            "which data.streaming=true is not; leave it out, or set data.streaming=false"
        )


def _problems_of_sweep(cfg: DictConfig) -> Iterator[str]:
    name = cfg.sweep.name
    single = not isinstance(name, ListConfig | DictConfig)
    if name is not None and not (single and _is_below(str(name))):
        yield f"sweep.name={name} must be the name of a folder below outputs/sweeps, or null"


def _problems_of_tasks(names: Any) -> Iterator[str]:
    if isinstance(names, list | ListConfig):
        for name in names:
            if not isinstance(name, str):
                yield f"evaluate.tasks: {name} is not the name of a task"
