"""Checks of the composed config, before anything is imported or written."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from lightning_distill.config.catalog import is_always_there
from lightning_distill.config.input_checks import problems_of_inputs
from lightning_distill.config.model_settings import (
    problems_of_api_teacher,
    problems_of_gguf,
    problems_of_lora,
    problems_of_quantization,
    problems_of_secrets,
    problems_of_server,
)
from lightning_distill.config.schema import SCHEMA, Key, is_number
from lightning_distill.config.settings import (
    ABSENT,
    Settings,
    Values,
    each_teacher,
    plain_settings,
)
from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.config.teacher_parts import problems_of_initialization
from lightning_distill.config.training_length import problems_of_length, problems_of_validation
from lightning_distill.config.unknown_keys import is_foreign
from lightning_distill.errors import ConfigError

MONITORED = "validation/nll"  # what a callback of Lightning's can wait for
LIGHTNING_CALLBACKS = "lightning.pytorch.callbacks."
PRECISIONS = (  # of Lightning
    *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    *("transformer-engine", "transformer-engine-float16", "32", "64", "16", "bf16"),
)
HALF = {
    **dict.fromkeys(("fp16", "float16", "half", "amp"), "16-mixed"),
    **dict.fromkeys(("bfloat16", "bf16-amp"), "bf16-mixed"),
    **dict.fromkeys(("fp32", "float32", "full"), "32-true"),
}
MAX_WANDB_NAME = 128  # characters
BUILT = ("data", "teacher", "student", "transfer", "loss")  # nodes that build our classes


def check(cfg: DictConfig, more: Iterable[str] = ()) -> None:
    """Raises ConfigError with every problem of a job's config. more: problems found elsewhere."""
    values, settings = Values(cfg), plain_settings(cfg)
    _check_structure(values)
    problems = [*_problems_of_values(values)]
    for one in each_teacher(settings):
        if one is not settings:
            problems += _problems_of_values(Values(OmegaConf.create(one)))
        problems += [*_problems_of_heads(one), *problems_of_quantization(one)]
        problems += [*problems_of_gguf(one), *problems_of_lora(one), *problems_of_length(one)]
    problems += [*_problems_of_weights(settings), *problems_of_initialization(settings)]
    problems += [*_problems_of_sweep(settings), *_problems_of_streaming(settings)]
    problems += [*_problems_of_callbacks(settings), *_problems_of_tasks(settings)]
    problems += [*problems_of_validation(settings), *_problems_of_wandb(settings)]
    problems += [*_problems_of_precision(settings["trainer"].get("precision"))]
    if find_stage(settings["stage"]).makes_jobs or settings["stage"] == "plan":
        problems += problems_of_inputs(settings)
    if "url" in settings["teacher"]:
        problems += [*problems_of_server(settings["teacher"]), *problems_of_api_teacher(settings)]
    _refuse([*problems, *more])


def _problems_of_precision(precision: Any) -> Iterator[str]:
    if str(precision) not in PRECISIONS:
        meant = HALF.get(str(precision).lower())
        choice = f"set it to {meant}" if meant else f"there is: {', '.join(PRECISIONS)}"
        yield f"trainer.precision={precision} does not exist; {choice}"


def check_sweep(cfg: DictConfig, more: Iterable[str] = ()) -> None:
    """Raises ConfigError for what is wrong with all jobs of a sweep, before the first begins."""
    values = Values(cfg)
    _check_structure(values)
    numbers = [key for key, one in SCHEMA.items() if one.type in ("integer", "number")]
    problems = [*_problems_of_values(values, [*numbers, "sweep.rerun"])]
    problems += _problems_of_sweep({"sweep": {"name": values["sweep.name"]}})
    _refuse([*problems, *more])


def check_secrets(settings: Settings) -> None:
    """Raises ConfigError for a server's key in the config, before Hydra writes it to files."""
    teacher = settings.get("teacher")
    if not isinstance(teacher, dict) or "url" not in teacher:
        return
    given = settings["hydra"]["overrides"]["task"]
    urls = [teacher["url"], *(one for one in given if "teacher.url=" in one)]
    variable = teacher.get("key_variable")
    name = None if variable is None or "${" in str(variable) else str(variable)
    _refuse([p for one in urls if one != "???" for p in problems_of_secrets(str(one), name)])


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


def _check_structure(values: Values) -> None:
    """Nodes, single values and texts, which the other checks rely on."""
    shape = [key for key, one in SCHEMA.items() if one.type in ("node", "value")]
    texts = [key for key, one in SCHEMA.items() if one.type == "text" and not one.choices]
    problems = [*_problems_of_values(values, shape), *_removed_keys(values)]
    problems += _problems_of_values(values, texts)
    name = values["name"]
    if isinstance(name, list | dict) or not _is_below(str(name or "")):
        problems.append(f"name={name} must be the name of a folder below <paths.outputs>/runs")
    _refuse(problems)
    outputs = Path(str(values["paths.outputs"]))
    existing = next(path for path in (outputs, *outputs.resolve().parents) if path.exists())
    if not existing.is_dir():
        _refuse([f"paths.outputs={outputs} must be a folder, and {existing} is a file"])


def _problems_of_values(values: Values, keys: Iterable[str] = SCHEMA) -> Iterator[str]:
    """What the schema refuses. A class from outside of the package may have the same names for
    arguments of its own, so that only the keys of config.yaml are checked in its node."""
    foreign = {name for name in BUILT if is_foreign(values.nodes.get(name))}
    for key in keys:
        declared_there = key.split(".")[0] in foreign and not is_always_there(key)
        skipped = declared_there or not SCHEMA[key].is_checked
        if not skipped and (value := values[key]) is not ABSENT:
            yield from SCHEMA[key].problems(key, value)


def _removed_keys(values: Values) -> Iterator[str]:
    for key in SCHEMA:
        if is_always_there(key) and not key.startswith("hydra."):
            parent = values[key.rpartition(".")[0]]
            reported = "." in key and not isinstance(parent, dict)  # as a problem of its node
            if not reported and values[key] is ABSENT:
                yield f"{key} is not there any more; leave ~{key} out of the command"


def _is_below(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _problems_of_callbacks(settings: Settings) -> Iterator[str]:
    """Lightning accepts a list of anything, and fails when it calls one of them."""
    for key in ("callbacks", "plugins"):
        given = settings["trainer"].get(key)
        items = given if isinstance(given, list) else [given] * (given is not None)
        nodes = [one for one in items if isinstance(one, dict) and "_target_" in one]
        if len(nodes) < len(items):
            yield f"trainer.{key}={given} must be a list of nodes with a _target_"
        # A callback of the user's own may log anything.
        only_lightnings = all(str(one["_target_"]).startswith(LIGHTNING_CALLBACKS) for one in nodes)
        for monitor in {one["monitor"] for one in nodes if one.get("monitor")} - {MONITORED}:
            if key == "callbacks" and only_lightnings:
                yield f"trainer.callbacks: monitor={monitor} is not logged; {MONITORED} is"


def _problems_of_weights(settings: Settings) -> Iterator[str]:
    weights, count = settings["teacher"].get("weights"), len(each_teacher(settings))
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


def _problems_of_heads(settings: Settings) -> Iterator[str]:
    for role in ("teacher", "student"):
        node = settings[role]
        if node.get("initialize") == "teacher_layers":  # it has the teacher's heads
            continue
        width, heads = node.get("hidden_size"), node.get("num_attention_heads")
        # Rotary positions turn pairs of each head's channels.
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % (2 * heads):
            yield (
                f"{role}.hidden_size={width} must be a multiple of 2 × "
                f"{role}.num_attention_heads={heads}"
            )


def _problems_of_streaming(settings: Settings) -> Iterator[str]:
    if settings["data"].get("streaming") is not True:
        return
    transfer = settings["transfer"]
    if prepares := getattr(get_class(transfer["_target_"]), "prepares", None):
        yield (
            f"data.streaming=true has no end, and this transfer prepares the {prepares} of all "
            "blocks first; choose transfer=online or on_policy, or set data.streaming=false"
        )
    elif transfer.get("num_blocks") is not None:
        yield (
            f"transfer.num_blocks={transfer['num_blocks']} chooses from a text of known length, "
            "which data.streaming=true is not; leave it out, or set data.streaming=false"
        )


def _problems_of_sweep(settings: Settings) -> Iterator[str]:
    name = settings["sweep"]["name"]
    single = not isinstance(name, list | dict)
    if name is not None and not (single and _is_below(str(name))):
        yield f"sweep.name={name} must be the name of a folder below outputs/sweeps, or null"


def _problems_of_wandb(settings: Settings) -> Iterator[str]:
    """What W&B refuses, but only once a run starts."""
    node = settings["logger"].get("wandb") or {}
    for key in ("project", "entity"):
        name = str(node.get(key) or "")
        bad = set(name) & set("/\\#?%:")
        if bad or len(name) > MAX_WANDB_NAME:
            hint = "; give the team as logger.wandb.entity" * (key == "project" and "/" in bad)
            yield (
                f"logger.wandb.{key}={name} must have at most {MAX_WANDB_NAME} characters, and "
                f"none of / \\ # ? % :{hint}"
            )


def _problems_of_tasks(settings: Settings) -> Iterator[str]:
    names = settings["evaluate"]["tasks"]
    if isinstance(names, list):
        for name in names:
            if not isinstance(name, str):
                yield f"evaluate.tasks: {name} is not the name of a task"
