"""The names of a sweep's folder and of its jobs' folders, made of the overrides of a command."""

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
    """The keys that a command sweeps over, without their values, and the overrides that are fixed.

    Re-running the command, also with more values, therefore resumes the same sweep.
    """
    if given is not None:
        return str(given)
    swept, fixed = [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.get_key_element(), override.value()
        if key == "sweep":  # a committed sweep
            swept.append(str(value))
        elif not affects_identity(key, value):
            continue
        elif override.is_sweep_override():
            swept.append(key)
        else:
            fixed.append(str(override.input_line))
    return _folder_name([*sorted(swept), *sorted(fixed)]) or "all"


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
