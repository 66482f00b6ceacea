"""What can be said of the settings before anything is imported or made."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill.config.model_settings import (
    problems_of_adapters,
    problems_of_quantization,
    problems_of_served,
    problems_of_server,
    secrets_of_server,
)
from lightning_distill.config.schema import (
    in_range,
    is_below,
    is_number,
    no_switches,
    out_of_range,
    problems_of_nodes,
    problems_of_outputs,
)
from lightning_distill.errors import ConfigError, unknown_name

MATMUL = ("highest", "high", "medium")  # torch.set_float32_matmul_precision
RESUME = ("auto", "never")
INITIALIZE = ("random", "teacher_layers")
RERUN = ("failed", "all", "none")


def check(cfg: DictConfig, more: Iterable[str] = ()) -> None:
    """Raises ConfigError that names every setting out of its range, all at once."""
    _check_nodes(cfg)
    problems = [problem for one in each_teacher(cfg) for problem in _problems(one)]
    problems += [*_problems_of_weights(cfg), *_problems_of_start(cfg)]
    for one in each_teacher(cfg):
        problems += [*problems_of_quantization(one), *problems_of_adapters(one)]
    problems += [*_problems_of_sweep(cfg), *_problems_of_streaming(cfg)]
    problems += _problems_of_callbacks(cfg.trainer)
    if (precision := cfg.trainer.get("matmul_precision", "highest")) not in MATMUL:
        problems.append(
            str(unknown_name("trainer.matmul_precision", precision, MATMUL)).rstrip(".")
        )
    if (resume := cfg.trainer.get("resume", "auto")) not in RESUME:
        problems.append(str(unknown_name("trainer.resume", resume, RESUME)).rstrip("."))
    problems += _problems_of_tasks(cfg.evaluate.tasks)
    if "url" in set(cfg.teacher):  # a key that is not set is not `in` the node itself
        problems += [*problems_of_server(cfg.teacher), *problems_of_served(cfg)]
    _refuse([*problems, *more])


def _problems_of_callbacks(trainer: DictConfig) -> Iterator[str]:
    """Lightning would take a list of anything, and fail where it calls one of them."""
    for key in ("callbacks", "plugins"):
        given = trainer.get(key)
        listed = list(given) if isinstance(given, ListConfig) else [given] * (given is not None)
        nodes = [one for one in listed if isinstance(one, DictConfig | dict) and "_target_" in one]
        if len(nodes) < len(listed):
            yield f"trainer.{key}={given} must be a list of nodes with a _target_"


def check_secrets(cfg: DictConfig) -> None:
    """Raises ConfigError for keys among the settings, before Hydra notes those in files."""
    teacher: Any = OmegaConf.to_container(cfg, resolve=False)
    teacher = teacher.get("teacher")
    if not isinstance(teacher, dict) or "url" not in teacher:
        return
    given = OmegaConf.select(cfg, "hydra.overrides.task") or []
    own = "" if OmegaConf.is_missing(cfg.teacher, "url") else teacher["url"]
    urls = [own, *(one for one in given if "teacher.url=" in one)]
    variable = teacher.get("key_variable")
    known = None if variable is None or "${" in str(variable) else str(variable)
    _refuse([problem for url in urls for problem in secrets_of_server(str(url), known)])


def check_sweep(cfg: DictConfig, more: Iterable[str] = ()) -> None:
    """Raises ConfigError for what is wrong with a sweep as a whole, before it has jobs."""
    _check_nodes(cfg)
    _refuse([*out_of_range(cfg), *_problems_of_sweep(cfg), *more])


def _check_nodes(cfg: DictConfig) -> None:
    """What all else looks into."""
    _refuse([*problems_of_nodes(cfg)])
    _refuse([*problems_of_outputs(Path(cfg.paths.outputs))])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)) + ".")


def each_teacher(cfg: DictConfig) -> list[DictConfig]:
    """The configuration as each of `teacher.members` has it; itself, where there are none."""
    members = cfg.teacher.get("members")
    if not members:
        return [cfg]
    listed = isinstance(members, list | ListConfig)
    if not listed or not all(isinstance(member, Mapping | DictConfig) for member in members):
        raise ConfigError(
            f"teacher.members={members} must list what each teacher has of its own, as in "
            "'teacher.members=[{seed: 0}, {seed: 1}]'."
        )
    found = []
    for member in members:
        one = cfg.copy()
        one.teacher = OmegaConf.merge(cfg.teacher, member)
        found.append(one)
    return found


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
    elif not all(in_range(weight, False, 0, False) for weight in weights):
        yield f"teacher.weights={weights} must be numbers above 0"


def _problems_of_start(cfg: DictConfig) -> Iterator[str]:
    if cfg.student.initialize not in INITIALIZE:
        yield str(unknown_name("student.initialize", cfg.student.initialize, INITIALIZE)).rstrip(
            "."
        )
    elif cfg.student.initialize == "teacher_layers" and "name" in cfg.student:
        yield (
            "student.initialize=teacher_layers takes the teacher's weights, student=pretrained "
            "brings its own; choose a size, as in student=s, or student.initialize=random"
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
            f"transfer.num_blocks={cfg.transfer.num_blocks} chooses from a text that is counted, "
            "which data.streaming=true is not; leave it out, or set data.streaming=false"
        )


def _problems_of_sweep(cfg: DictConfig) -> Iterator[str]:
    rerun, name = cfg.sweep.rerun, cfg.sweep.name
    if rerun not in RERUN:
        yield str(unknown_name("sweep.rerun", rerun, RERUN)).rstrip(".")
    single = not isinstance(name, ListConfig | DictConfig)
    if name is not None and not (single and is_below(Path(str(name)))):
        yield f"sweep.name={name} must be the name of a folder below outputs/sweeps, or null"


def _problems_of_tasks(names: Any) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list | ListConfig):
        return [f"evaluate.tasks={names} must be a list, as in evaluate.tasks=[{names}]"]
    wrong = [name for name in names if not isinstance(name, str)]
    return [f"evaluate.tasks: {name} is not the name of a task" for name in wrong]


def _problems(cfg: DictConfig) -> list[str]:
    problems = [*out_of_range(cfg), *no_switches(cfg)]
    tags = OmegaConf.select(cfg, "logger.wandb.tags")
    if tags is not None and not isinstance(tags, str | ListConfig):
        problems.append(f"logger.wandb.tags={tags} must be a list, as in [mine]")
    for role in ("teacher", "student"):
        node = cfg[role]
        if node.get("initialize") == "teacher_layers":  # its heads are as wide as the teacher's
            continue
        width, heads = node.get("hidden_size"), node.get("num_attention_heads")
        # Rotary positions turn pairs of each head's channels.
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % (2 * heads):
            problems.append(
                f"{role}.hidden_size={width} must be a multiple of 2 × "
                f"{role}.num_attention_heads={heads}"
            )
    return problems


def require(
    key: str, value: Any, least: float, most: float = math.inf, below: bool = False
) -> None:
    """Raises ConfigError unless value is a number from least to most; below: less than most."""
    if not (is_number(value) and least <= value <= most) or (below and value == most):
        end = "" if most == math.inf else f" {'to below' if below else 'to'} {most:g}"
        raise ConfigError(f"{key}={value} must be a number from {least:g}{end}.")
