"""The folders of runs, sweeps and jobs, named after their overrides."""

import logging
from hashlib import sha256
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lightning_distill.stages import LOOKING
from lightning_distill.storage.locks import is_held
from lightning_distill.sweeps.job import results_in, stopped_half_way
from lightning_distill.sweeps.job_key import job_key
from lightning_distill.sweeps.resume import LOCK

log = logging.getLogger(__name__)
LONGEST_NAME = 120  # characters of a folder's name; file systems take 255 bytes
# Overrides that tell no job from another.
NAMELESS = ("paths", "name", "logger", "sweep", "evaluate")


def folder_name(overrides: list[str]) -> str:
    """Overrides as the name of a folder: `loss.alpha=1,student=xs`.

    Slashes would make sub-folders; what is too long is cut and told apart by a hash.
    """
    name = ",".join(overrides).replace("experiment/", "").replace("/", ".")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def sweep_name(given: str | None, overrides: list[str]) -> str:
    """The names of what a command sweeps over, without their values, and what it sets.

    So the same command, and one with more values, goes on with the same sweep.
    """
    if given is not None:
        return str(given)
    swept, fixed = [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if key == "sweep":  # a committed one
            swept.append(str(override.value()))
        elif not affects_identity(key) or (key == "stage" and override.value() in LOOKING):
            continue
        elif override.is_sweep_override():
            swept.append(key)
        else:
            fixed.append(str(override.input_line))
    return folder_name([*sorted(swept), *sorted(fixed)]) or "all"


def affects_identity(key: str, *nameless: str) -> bool:
    """Whether a setting can tell one job from another; also which run a job evaluates."""
    return key == "evaluate.run" or key.split(".")[0] not in (*NAMELESS, *nameless)


def job_folder(*, _root_: DictConfig) -> str:
    """A job's overrides; and its key, where the folder of that name is of other settings."""
    parts = [
        o for o in _root_.hydra.overrides.task if affects_identity(o.split("=")[0], "experiment")
    ]
    looks = [f"stage={stage}" for stage in LOOKING]
    name = folder_name(sorted(part for part in parts if part not in looks)) or "job"
    key = job_key(_root_)
    there = results_in(Path(_root_.hydra.sweep.dir) / name).get("key", key)
    return name if there == key else f"{name}-{key[:8]}"


def run_folder(outputs: str, new: str, *, _root_: DictConfig) -> str:
    """Where a single run writes: where one of its settings was interrupted, or a folder of its own.

    new: the name of the latter.
    """
    runs = Path(outputs) / "runs" / str(_root_.name)
    if _root_.stage == "distill" and _root_.trainer.get("resume") == "auto":
        for checkpoints in sorted(runs.glob("*/checkpoints"), reverse=True):
            folder = checkpoints.parent
            found = results_in(folder)
            left = stopped_half_way(found) and any(checkpoints.glob("*.ckpt"))
            if left and found.get("key", "") == _key(_root_) and not is_held(folder / LOCK):
                return str(folder)
    return str(runs / new)


def _key(cfg: DictConfig) -> str | None:
    """None where something is wrong with the settings, which the job will say."""
    try:
        return job_key(cfg)
    except (OmegaConfBaseException, LookupError, TypeError, ValueError, AttributeError):
        return None
