"""What a job leaves for others to read: `results.json`."""

import json
import logging
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from lightning_distill.config import allowlist
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError, one_line, unknown_name
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.job_key import job_key
from lightning_distill.training.cost import Cost

RESULTS = "results.json"

# What a run's settings have for sure.
GROUPS = {"data", "teacher", "student", "transfer", "loss", "trainer", "paths"}


@dataclass(frozen=True)
class Job:
    """One run: where it writes, and what it is called."""

    folder: Path
    name: str
    group: str  # the sweep it belongs to, or its own kind
    overrides: list[str]
    seed: int
    key: str
    started: str  # when the command was, which may be that of a whole sweep
    resumes: bool = True  # where a run with the same settings was interrupted

    @classmethod
    def of(
        cls, cfg: DictConfig, folder: Path, name: str, group: str, overrides: list[str]
    ) -> "Job":
        key, started = job_key(cfg), cfg.sweep.started
        resumes = cfg.trainer.get("resume", "auto") == "auto"
        return cls(folder, name, group, overrides, cfg.seed, key, started, resumes)

    def was_interrupted(self) -> bool:
        """Whether a run that is gone on with stopped half-way in this folder."""
        if not self.resumes:
            return False
        try:
            before = read_results(self.folder)
        except (OSError, ValueError):
            return False
        return stopped_half_way(before) and before.get("key") == self.key

    def results(self, cost: "Cost", scores: dict[str, Any]) -> dict[str, Any]:
        """The content of results.json for a job that came to its end."""
        return {**self.state("finished"), **scores, "cost": asdict(cost)}

    def state(self, status: str, **more: Any) -> dict[str, Any]:
        """The content of results.json for a job that has not."""
        return {
            "status": status,
            "key": self.key,
            "seed": self.seed,
            "overrides": self.overrides,
            "started": self.started,
            **more,
        }


def stopped_half_way(found: dict[str, Any]) -> bool:
    """Whether these are the results of a run that can go on: one that was interrupted, or broke
    by no mistake in its settings."""
    broke = found.get("status") == "failed" and found.get("mendable") is False
    return found.get("status") == "running" or broke


def write_results(folder: Path, results: dict[str, Any]) -> None:
    if not process_group.is_rank_zero():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any]:
    """Raises OSError where there is none, ValueError where it is not one."""
    found = json.loads((folder / RESULTS).read_text())
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def check_results(found: dict[str, Any]) -> None:
    """Raises ValueError unless results are as a job writes them, as far as others rely on it."""
    if not isinstance(found.get("status"), str):
        raise ValueError("it holds no status")
    known = {key: found.get(key) or {} for key in ("student", "teacher", "cost")}
    for key, node in known.items():
        if not isinstance(node, dict) or not _is_of_numbers(node):
            raise ValueError(f"its {key} is no table of numbers")
    needed = {"nll", "parameters"}
    if any(known[key] and not needed <= known[key].keys() for key in ("student", "teacher")):
        raise ValueError(f"a model of it lacks one of {', '.join(sorted(needed))}")
    if found["status"] == "finished" and not (known["cost"] and "seed" in found and "key" in found):
        raise ValueError("it lacks the seed, the key or the cost of a finished job")


def _is_of_numbers(node: dict[str, Any]) -> bool:
    """As far down as it goes: what a task measures is a table of its own."""
    return all(
        _is_of_numbers(value) if isinstance(value, dict) else _is_number(value)
        for value in node.values()
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def finished_run(setting: str, folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and results of a run's folder, which `setting` names.

    Raises ConfigError where it is none, or did not come to its end.
    """
    for needed in (".hydra/config.yaml", RESULTS):
        if not (folder / needed).exists():
            raise ConfigError(f"{setting}={folder} is not the folder of a run: no {needed}.")
    try:
        needed = RESULTS
        results = read_results(folder)
        check_results(results)
        needed = ".hydra/config.yaml"
        cfg = OmegaConf.load(folder / needed)
        if isinstance(cfg, DictConfig):
            allowlist.check_targets(OmegaConf.to_container(cfg), f"{setting}={folder}: ")
        if not isinstance(cfg, DictConfig) or not set(cfg) >= GROUPS:
            raise ValueError(f"it lacks one of {', '.join(sorted(GROUPS))}")
    except ConfigError:
        raise
    except (OSError, ValueError, YAMLError) as error:
        reason = one_line(error)
        raise ConfigError(f"{setting}={folder}: its {needed} cannot be read: {reason}.") from error
    if results["status"] != "finished":
        state = f"{setting}={folder} is {results['status']}"
        raise ConfigError(f"{state}; run its command again first.")
    return cfg, results


def objectives(results: dict[str, Any], names: list[str]) -> float | list[float] | None:
    """What a sweeper is told of a job. None, a failed trial, where anything is no number.

    NaN would end an Optuna study.
    """
    found = []
    for name in names:
        group, _, key = name.partition(".")
        value = (results.get(group) or {}).get(key)
        if value is None or not math.isfinite(value):
            return None
        found.append(float(value))
    return found if len(found) > 1 else found[0]


def scores() -> list[str]:
    """The dotted keys of all numbers in results.json."""
    model = ("parameters", "nll", "perplexity", "bits_per_byte", "calibration_error")
    known = {
        "student": (*model, "teacher_agreement", "teacher_kl"),
        "teacher": model,
        "cost": tuple(field.name for field in fields(Cost)),
    }
    return [f"{group}.{key}" for group, keys in known.items() for key in keys]


log = logging.getLogger(__name__)


def results_in(folder: Path) -> dict[str, Any]:
    """What is known of a job; nothing where there is none."""
    try:
        return read_results(folder)
    except (OSError, ValueError):
        return {}


def problems_of_objectives(names: Any) -> list[str]:
    if not isinstance(names, list | ListConfig) or not names:
        return [f"sweep.objectives={names} must be a list, as in [student.nll]"]
    wrong = [name for name in names if name not in scores()]
    return [str(unknown_name("sweep.objectives", name, scores())).rstrip(".") for name in wrong]
