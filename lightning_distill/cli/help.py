"""`--help TOPIC`: a group, a node or a key of the config, from its declaration."""

import difflib
import json
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from textwrap import wrap

import yaml

from lightning_distill.config.catalog import committed, config_dirs, default_options, groups
from lightning_distill.config.schema import SCHEMA
from lightning_distill.config.stage_lookup import stages_of_user
from lightning_distill.config.usual import usual_of_size
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.declarations import Metric, objective_metrics
from lightning_distill.stages import STAGES

WIDTH = 80
INDENT = 4
# Of a key whose value follows from what is trained.
OTHERS = "others for pretrained models, parts and adapters, see --cfg job"


def help_topics(arguments: list[str]) -> list[str]:
    """The words beside --help that are neither flags nor overrides: `--help loss`."""
    if not {"--help", "-h"} & set(arguments):
        return []
    folders = set(config_dirs(arguments))
    words = (word for word in arguments if word not in folders)
    return [word for word in words if not word.startswith("-") and "=" not in word]


def describe(topic: str) -> str:
    """The page of a group, node or key. Raises ConfigError for another word."""
    keys = [key for key in SCHEMA if key.startswith(f"{topic}.")]
    inner = [group for group in groups() if group.startswith(f"{topic}/")]
    if topic not in SCHEMA and not (topic in groups() or keys or inner):
        names = [*SCHEMA, *groups(), *{key.split(".")[-1]: None for key in SCHEMA}]
        nearest = difflib.get_close_matches(topic, names, 1, 0.5)
        # A bare name, as in `--help temperature`, is a key of some node.
        full = [key for key in SCHEMA if nearest and key.split(".")[-1] == nearest[0]]
        hint = f" Did you mean {' or '.join(full[:3] or nearest)}?" if nearest else ""
        raise ConfigError(f"--help {topic}: there is no such group or key.{hint}")
    blocks = []
    if topic in groups():
        entries = [_entry(file.stem, first_comment(file)) for file in groups()[topic]]
        blocks.append("\n".join([f"{topic}=OPTION", *entries]))
    for group in inner:
        options = ", ".join(file.stem for file in groups()[group])
        blocks.append("\n".join(wrap(f"{group}=OPTION: {options}", WIDTH)))
    if topic in SCHEMA and topic not in groups():
        blocks.append(_describe_key(topic))
    if topic == "stage":
        stages = STAGES | stages_of_user()
        blocks.append("\n".join(_entry(name, stage.help) for name, stage in stages.items()))
    if topic == "sweep.objectives":
        blocks.append("\n".join(_entry(name, *_about(one)) for name, one in _metrics().items()))
    if keys:
        blocks.append("\n".join(_describe_key(key) for key in keys))
    return "\n\n".join(blocks)


def _metrics() -> dict[str, Metric]:
    """Every metric, those of the tasks in --config-dir included."""
    files = groups()["data"]
    tasks = (yaml.safe_load(file.read_text(encoding="utf-8")).get("_target_") for file in files)
    by_task = (objective_metrics(str(task)) for task in dict.fromkeys(tasks))
    return {name: one for metrics in by_task for name, one in metrics.items()}


def _about(metric: Metric) -> list[str]:
    return [f"{metric.meaning}; {metric.direction}d"]


def list_stages() -> str:
    """The lines of --help about `stage=`."""
    width = max(map(len, STAGES))
    return "\n".join(f"    {name:{width}}  {stage.help}" for name, stage in STAGES.items())


def first_comment(file: Path) -> str:
    """What an option means: the first sentence of its file, after its command if it has one."""
    lines = takewhile(
        lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines()
    )
    commands = ("# @package", "# lightning-distill ")
    text = " ".join(line.lstrip("# ") for line in lines if not line.startswith(commands))
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


@dataclass(frozen=True)
class Default:
    """The value of a key that the command does not set.

    choice: the option whose file has it, where the command has to choose that one. required: the
    file has no value. varies: the value follows from what is trained, and this is that of a model
    from scratch.
    """

    value: str
    choice: str
    required: bool = False
    varies: bool = False


def default_of(key: str) -> Default | None:
    """None of a node, and of a key that no file sets."""
    values = {one.choice: one.value for one in committed().get(key, [])}
    if not values or SCHEMA[key].type == "node":
        return None
    chosen = [f"{node}={option}" for node, option in default_options().items()]
    choice = next(one for one in (*chosen, "", *values) if one in values)
    value = values[choice]
    if value == "???":
        return Default("", choice, required=True)
    varies = isinstance(value, str) and value.startswith("${usual:")
    if varies:
        value = usual_of_size(value)
    shown = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return Default(shown, "" if choice in chosen else choice, varies=varies) if shown else None


def _describe_key(key: str) -> str:
    facts = [fact for fact in (SCHEMA[key].type_and_range(), _default(key)) if fact]
    return _entry(key, SCHEMA[key].meaning, *(["; ".join(facts)] if facts else []))


def _default(key: str) -> str:
    """The value that the key has when the command does not set it, and the option it is of."""
    default = default_of(key)
    if default is None:
        return ""
    if default.required:
        return f"required by {default.choice}"
    of = f" with {default.choice}" if default.choice else ""
    return f"default {default.value}{of}" + (f"; {OTHERS}" if default.varies else "")


def _entry(name: str, *lines: str) -> str:
    """A name, with indented lines below it."""
    margin = " " * (2 + INDENT)
    below = [
        part
        for line in lines
        for part in wrap(line, WIDTH, initial_indent=margin, subsequent_indent=margin)
    ]
    return "\n".join([f"  {name}", *below])
