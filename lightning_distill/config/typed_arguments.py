"""The arguments of a command before Hydra parses them: what people type by habit of other programs.

`rewrite` corrects what can only mean one thing. `check` refuses the rest, and names what is meant.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.config.catalog import groups
from lightning_distill.config.schema import SCHEMA
from lightning_distill.errors import ConfigError
from lightning_distill.stages import STAGES

# Flags of Hydra, and whether the next argument is their value.
FLAGS = {
    **dict.fromkeys(
        ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r"), False
    ),
    **dict.fromkeys(("--multirun", "-m", "--shell-completion", "-sc"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--info", "-i"), True),
    **dict.fromkeys(("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), True),
}
SWEEP = ("-m", "--multirun")
# Names that other programs have for our keys.
OTHER_NAMES = {
    "max_epochs": "student.epochs",
    "num_epochs": "student.epochs",
    "num_train_epochs": "student.epochs",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "max_length": "data.sequence_length",
    "seq_len": "data.sequence_length",
    "per_device_train_batch_size": "data.batch_size",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "fp16": "trainer.precision=16-mixed",
    "bf16": "trainer.precision=bf16-mixed",
    "wandb": "logger.wandb",
    "output_dir": "paths.outputs",
    "dataset": "data",
    "model": "student",
}


def rewrite(arguments: list[str]) -> list[str]:
    """With -m in front, `~/` after = as the home folder, and values of other letters in quotes."""
    flags = [one for one in arguments if one in SWEEP]
    return flags[:1] + [_rewritten(one) for one in arguments if one not in SWEEP]


def _rewritten(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or re.search(r"[\[\]{}()'\"\\$,]", value):
        return argument
    if value.startswith("~/"):
        value = str(Path(value).expanduser())
    if not value.isascii():
        value = f"'{value}'"
    return f"{key}={value}"


def check(arguments: list[str]) -> None:
    """Raises ConfigError for all that is no override and no flag."""
    if {"--help", "-h"} & set(arguments):
        return  # words are its topics
    if problems := list(_problems(arguments)):
        raise ConfigError(" ".join(problems))


def _problems(arguments: list[str]) -> Iterator[str]:
    is_value = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if is_value:
            is_value = False
        elif argument in FLAGS:
            is_value = FLAGS[argument]
        elif FLAGS.get(name):
            continue
        elif argument.startswith("-"):
            meant = key_meant_by(name.lstrip("-").replace("-", "_"))
            known = f" Did you mean {_with_value(meant, value)}?" if meant else ""
            yield f"{argument}: settings have no dashes, and a value follows =.{known}"
        elif argument.startswith("~"):
            if (deleted := name.removeprefix("~")) in groups():
                yield f"{argument}: every run needs {deleted}; choose another with {deleted}=…."
        elif not equals:
            yield _about_word(argument)
        elif value.startswith("="):
            yield f"{argument}: one = sets a value, {name}={value.lstrip('=')}."
        elif value == "None":
            yield f"{argument}: the value for none is null, {name}=null."


def _about_word(word: str) -> str:
    """What a word without = may be: a stage, or an option of a group."""
    options = [f"stage={word}"] if word in STAGES else []
    options += [
        f"{group}={word}"
        for group, files in groups().items()
        if word in {file.stem for file in files} and not group.startswith("hydra")
    ]
    if not options and (meant := key_meant_by(word)):
        options = [f"{meant}=…"]
    hint = f" Did you mean {' or '.join(options[:3])}?" if options else ""
    return f"{word}: a setting is key=value.{hint}"


def key_meant_by(name: str) -> str | None:
    """The key of that name, whatever the node: `temperature` is loss.temperature."""
    last = name.rpartition(".")[2]
    if name in OTHER_NAMES or last in OTHER_NAMES:
        return OTHER_NAMES.get(name) or OTHER_NAMES[last]
    if name.startswith("wandb."):
        return f"logger.{name}"
    keys = [key for key in (*SCHEMA, *groups()) if key.rpartition(".")[2] == last]
    ours = [key for key in keys if not key.startswith(("hydra", "teacher."))]
    for node in ("loss", "optimizer", "student", "data", "trainer"):
        if f"{node}.{last}" in ours:
            return f"{node}.{last}"
    return next(iter([*ours, *keys]), None)


def _with_value(key: str, value: str) -> str:
    return key if "=" in key else f"{key}={value or '…'}"
