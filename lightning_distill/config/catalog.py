"""The config files: groups, their options, and the keys of each.

Those of the package, and those of the folder that the command gives with --config-dir.
"""

import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

# In a wheel the config files lie inside the package. In a checkout a link there leads beside it,
# which is a file where the system has no links.
PACKAGE = Path(__file__).resolve().parents[1]
INSIDE = PACKAGE / "conf"
CONF = INSIDE.resolve() if INSIDE.is_dir() else PACKAGE.parent / "conf"
RECIPES = ("experiment", "sweep", "hydra")  # groups whose files set keys of other groups
# Groups whose options are composed under other nodes than their own name.
NODES = {
    "model": ("teacher", "student"),
    "optimizer": ("optimizer", "teacher.optimizer"),
    "schedule": ("schedule", "teacher.schedule"),
}


class Committed(NamedTuple):
    """The value of a key in one file. choice: `loss=jensen_shannon`, empty for config.yaml."""

    choice: str
    value: Any


def groups() -> dict[str, list[Path]]:
    """Every config group, as `hydra/launcher`, with the files of its options."""
    return _groups((CONF, *user_folders()))


def user_folders() -> list[Path]:
    """The folder of --config-dir, if the command gives one."""
    folders = (Path(value).resolve() for value in config_dirs(sys.argv))
    return [folder for folder in folders if folder.is_dir()]


def config_dirs(arguments: list[str]) -> Iterator[str]:
    """What a command gives as --config-dir FOLDER or --config-dir=FOLDER."""
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            yield value if equals else following


@cache
def _groups(folders: tuple[Path, ...]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*/*.yaml")):
            files.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file)
    return files


@cache
def default_options() -> dict[str, str]:
    """The option that each node has when the command chooses none: {"data": "python_docs"}."""
    chosen = [one for one in _load(CONF / "config.yaml")["defaults"] if one != "_self_"]
    return {str(k).rpartition("@")[2]: str(v) for one in chosen for k, v in one.items()}


@cache
def committed() -> dict[str, list[Committed]]:
    """Every dotted key of config.yaml and of the package's options, with its values."""
    values: dict[str, list[Committed]] = {}
    for key, value in keys_of(_load(CONF / "config.yaml")):
        values.setdefault(key, []).append(Committed("", value))
    for group, files in _groups((CONF,)).items():
        if group.split("/")[0] in RECIPES:
            continue
        for node in NODES.get(group, (group,)):
            for file in files:
                for key, value in keys_of(_load(file), f"{node}."):
                    values.setdefault(key, []).append(Committed(f"{node}={file.stem}", value))
    return values


def numbers_of_size(choice: str | None) -> dict[str, Any]:
    """The values that the file of `student=<choice>` sets; empty where there is no such file."""
    values: dict[str, Any] = {}
    for group in ("model", "student"):
        for file in groups().get(group, []):
            values |= _load(file) if file.stem == choice else {}
    return {key: value for key, value in values.items() if type(value) is int}


def is_always_there(key: str) -> bool:
    """Whether config.yaml has the key, whatever options are chosen."""
    return any(not one.choice for one in committed().get(key, []))


def keys_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a node's values and inner nodes, without those that Hydra reads itself."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ("defaults", "_target_", "_partial_"):
                yield f"{prefix}{key}", value
                yield from keys_of(value, f"{prefix}{key}.")


def _load(file: Path) -> dict[str, Any]:
    """As the file has it: `???` and interpolations stay."""
    settings = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}
