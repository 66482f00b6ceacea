"""The names of a sweep's folder and of its jobs' folders, made of the overrides of a command."""

import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.errors import ConfigError
from lightning_distill.sweeps.job import results_in

MAX_BYTES = 120  # of UTF-8; file systems take 255, and other names are made of these
# Groups of settings that distinguish no job from another.
UNNAMED = ("paths", "name", "logger", "sweep", "evaluate")


def sweep_name(given: str | None, overrides: list[str]) -> str:
    """What a command sweeps over, and a hash of that and of the overrides that are fixed:
    `alpha-student-1f0c9a3b`, which neither a shell nor Hydra wants in quotes.

    Values that are swept do not count. Re-running the command, also with more of them, therefore
    resumes the same sweep.
    """
    if given is not None:
        return str(given)
    recipes: list[tuple[str, str]] = []
    swept: list[str] = []
    fixed: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if key == "sweep" or (key == "experiment" and not override.is_sweep_override()):
            recipes.append((str(value), key))
        elif not affects_identity(key, value):
            continue
        elif override.is_sweep_override():
            swept.append(override.get_key_element())
        else:
            fixed.append(str(override.input_line))
    content = json.dumps([sorted(recipes), sorted(swept), sorted(fixed)])
    names = [*(option for option, _ in sorted(recipes)), *_short_keys(swept)] or ["all"]
    readable = re.sub(r"[^\w.-]", "_", "-".join(names), flags=re.ASCII)[:MAX_BYTES]
    return f"{readable}-{sha256(content.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _short_keys(keys: list[str]) -> list[str]:
    """The last part of each key, `temperature` of `loss.temperature`; the whole of two alike."""
    last = {key: re.split(r"[./@]", key)[-1] for key in (key.lstrip("+~") for key in sorted(keys))}
    count = Counter(last.values())
    return [name if count[name] == 1 else key for key, name in last.items()]


def job_name(overrides: list[str], sweep_folder: Path, key: str) -> str:
    """The job's overrides; with its key, where another job's results already have that name."""
    pairs = [override.partition("=") for override in overrides]
    kept = [f"{k}{equals}{v}" for k, equals, v in pairs if affects_identity(k, v)]
    name = _folder_name(sorted(o for o in kept if not o.startswith("experiment="))) or "job"
    known = results_in(sweep_folder / name).get("key", key)
    return name if known == key else f"{name}-{key[:8]}"


def affects_identity(key: str, value: Any = None) -> bool:
    """Whether an override distinguishes a job from another; evaluate.run is the job itself."""
    if key == "stage" and _inspects_only(value):
        return False
    return key == "evaluate.run" or key.split(".")[0] not in UNNAMED


def _folder_name(overrides: list[str]) -> str:
    """`loss.alpha=1,student=xs`: without slashes, and with a hash in place of what is too long."""
    name = ",".join(overrides).replace("experiment/", "").replace("/", ".")
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= MAX_BYTES:
        return name
    start = encoded[:MAX_BYTES].decode(errors="ignore")
    return f"{start}-{sha256(encoded).hexdigest()[:8]}"


def _inspects_only(stage: Any) -> bool:
    try:
        return find_stage(stage).inspects_only
    except ConfigError:  # the job refuses it
        return False
