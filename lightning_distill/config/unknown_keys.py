"""Keys that no part of the program reads: mistyped, added with `+`, or renamed since."""

import difflib
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_distill.config.allowlist import LOOKUPS
from lightning_distill.config.catalog import committed, groups
from lightning_distill.config.schema import FREE, RENAMED, SCHEMA
from lightning_distill.config.typed_arguments import key_meant_by
from lightning_distill.errors import ConfigError

OURS = ("lightning_distill.", "hydra.utils.")


def check_overrides(settings: dict[str, Any]) -> None:
    """Raises ConfigError for keys of the command that nothing reads, as soon as it is composed.

    Hydra refuses a key that no file has, unless `+` adds it: `+loss.temprature=4` would be ignored.
    """
    overrides = OverridesParser.create().parse_overrides(settings["hydra"]["overrides"]["task"])
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()}
    swept_groups = {key for key in swept if _is_group(key, settings)}
    problems = []
    for override in overrides:
        key = override.key_or_group
        if key in RENAMED:
            problems.append(f"{key} is now {RENAMED[key]}.")
        # Whether a swept group has the key is known when its jobs are composed.
        elif (override.is_add() or override.is_force_add()) and not (
            key.split(".")[0] in swept_groups or _is_group(key, settings) or _is_read(key, settings)
        ):
            problems.append(describe_unknown(key))
    if problems:
        raise ConfigError(" ".join(problems))


def describe_unknown(key: str) -> str:
    """The message for a key that is not there: its new name, its choice, or the nearest key."""
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}."
    choices = sorted({one.choice for one in committed().get(key, []) if one.choice})
    if choices:
        return f"{key} is a setting of {' or '.join(choices)}; choose that for every job."
    names = [name for name in (*SCHEMA, *groups()) if not name.startswith("hydra")]
    nearest = difflib.get_close_matches(key, names, 1, 0.6)
    if meant := key_meant_by(key) or next(iter(nearest), None):
        return f"There is no setting {key}. Did you mean {meant}?"
    node = "hydra" if key.startswith("hydra.") else "job"
    return f"There is no setting {key}. `lightning-distill --cfg {node}` shows all."


def is_foreign(node: Any) -> bool:
    """Whether a node builds, or is given, a class or function from outside of the package."""
    if not isinstance(node, dict) or "_target_" not in node:
        return False
    lookups = (one for one in node.values() if isinstance(one, dict) and "path" in one)
    names = [node["_target_"]]
    names += [one["path"] for one in lookups if str(one.get("_target_")).endswith(LOOKUPS)]
    return not all(str(name).startswith(OURS) for name in names)


def _is_group(key: str, settings: dict[str, Any]) -> bool:
    """Whether it is a config group, of ours or in a folder of --config-dir."""
    sources = settings["hydra"]["runtime"]["config_sources"]
    folders = [Path(one["path"]) for one in sources if one["schema"] == "file"]
    # A key below a group of the user's own is theirs, too.
    group = key if key.split(".")[0] in groups() else key.split(".")[0]
    return any((folder / group).is_dir() for folder in folders)


def _is_read(key: str, settings: dict[str, Any]) -> bool:
    """Whether the schema has the key, or an argument of a user's or a library's class can be it."""
    parts = key.split(".")
    parents = [".".join(parts[:end]) for end in range(1, len(parts))]
    if key in SCHEMA or parts[-1] in ("_target_", "_partial_", "_args_"):
        return True
    if any(parent in SCHEMA and SCHEMA[parent].type != "node" for parent in parents):
        return True  # inside of a value: loss.temperature.steps
    node: Any = settings
    for part, parent in zip(parts, parents, strict=False):
        node = node.get(part) if isinstance(node, dict) else None
        if parent in FREE or is_foreign(node):
            return True
    return key in FREE
