"""One run, and its `results.json`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_distill.distributed import process_group
from lightning_distill.errors import unknown_name
from lightning_distill.metrics.declarations import objective_metrics
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.training.cost import Cost

RESULTS = "results.json"


@dataclass(frozen=True)
class Job:
    """One run: its folder, name and identity."""

    folder: Path
    name: str
    group: str  # the sweep's name; of a single run the job's
    overrides: list[str]
    seed: int
    key: str  # job_key of its settings
    started: str  # start of the command, which may be that of a whole sweep
    resumes: bool = True  # from the last checkpoint, where a run with this key was interrupted
    choices: dict[str, str] = field(default_factory=dict)  # the option of each config group
    number: int | None = None  # in its sweep; None for a single run

    @property
    def is_of_sweep(self) -> bool:
        return self.number is not None

    def was_interrupted(self) -> bool:
        """Whether this folder holds an unfinished run with this key, which this job resumes."""
        results = results_in(self.folder)
        return self.resumes and is_resumable(results) and results.get("key") == self.key

    def results(self, status: str, **values: Any) -> dict[str, Any]:
        """The content of results.json. status: running, finished, failed, not run."""
        return {
            "status": status,
            "key": self.key,
            "seed": self.seed,
            "overrides": self.overrides,
            "started": self.started,
            **values,
        }

    def final_results(self, cost: Cost, scores: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.results("finished", **scores, cost=asdict(cost), **more)


def is_resumable(results: dict[str, Any]) -> bool:
    """Whether these results are of a run that was killed, or failed for no mistake of the user's,
    so that the same settings can succeed from its last checkpoint."""
    crashed = results.get("status") == "failed" and results.get("user_error") is False
    return results.get("status") == "running" or crashed


def write_results(folder: Path, results: dict[str, Any]) -> None:
    if not process_group.is_rank_zero():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any]:
    """Raises OSError where there is no file, ValueError where it holds no JSON object."""
    results = json.loads((folder / RESULTS).read_text())
    if not isinstance(results, dict):
        raise ValueError("not a JSON object")
    return results


def results_in(folder: Path) -> dict[str, Any]:
    """The job's results; empty where there is no readable file."""
    try:
        return read_results(folder)
    except (OSError, ValueError):
        return {}


def check_results(results: dict[str, Any]) -> None:
    """Raises ValueError unless `results` has what a job writes and others read."""
    if not isinstance(results.get("status"), str):
        raise ValueError("it has no status")
    tables = {name: results.get(name) or {} for name in ("student", "teacher", "cost", "training")}
    for name, table in tables.items():
        if not isinstance(table, dict) or not _is_numeric(table):
            raise ValueError(f"its {name} is not a table of numbers")
    required = {"nll", "parameters"}
    if any(tables[role] and not required <= tables[role].keys() for role in ("student", "teacher")):
        raise ValueError(f"a model in it lacks one of {', '.join(sorted(required))}")
    complete = tables["cost"] and "seed" in results and "key" in results
    if results["status"] == "finished" and not complete:
        raise ValueError("it is finished and lacks its seed, key or cost")


def _is_numeric(value: Any) -> bool:
    """Whether all leaves are numbers or null; the scores of a task are a table of their own."""
    if isinstance(value, dict):
        return all(_is_numeric(one) for one in value.values())
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def objectives(results: dict[str, Any], names: Sequence[str]) -> float | list[float] | None:
    """The values that a sweeper optimizes, by their dotted names.

    None, a failed trial, where one is missing, NaN or Inf: NaN would end an Optuna study.
    """
    values = []
    for name in names:
        value: Any = results
        for part in name.split("."):
            value = (value or {}).get(part)
        if value is None or not math.isfinite(value):
            return None
        values.append(float(value))
    return values if len(values) > 1 else values[0]


def problems_of_objectives(names: Any, task: str = "") -> list[str]:
    """What is wrong with the setting sweep.objectives. task: the class of `data=`."""
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        return [f"sweep.objectives={names} must be a list, as in [student.nll]"]
    known = set(objective_metrics())
    if not set(names) <= known:
        known = set(objective_metrics(task))
    unknown = [name for name in names if name not in known]
    return [str(unknown_name("sweep.objectives", name, known)).rstrip(".") for name in unknown]
