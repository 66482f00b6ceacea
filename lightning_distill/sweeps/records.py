"""The jobs of a sweep, read from their folders. Any file of a folder may be absent or damaged."""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_distill.constants import PREDICTIONS, SAMPLES
from lightning_distill.stages import STAGES
from lightning_distill.sweeps.job import RESULTS
from lightning_distill.sweeps.job_files import (
    CONFIG,
    read_config,
    read_curves,
    read_predictions,
    read_samples,
    results_or_reason,
)
from lightning_distill.sweeps.job_key import WITHOUT_EFFECT, is_baseline


@dataclass
class JobRecord:
    """One job of a sweep: its config, results, curves and samples."""

    folder: Path
    name: str  # the overrides that not all jobs of the sweep share
    config: dict[str, Any]  # interpolations unresolved; empty if .hydra/config.yaml is unreadable
    results: dict[str, Any]  # always with `status` and `overrides`
    swept: dict[str, str] = field(default_factory=dict)  # values of the keys that the sweep varies
    curves: list[dict[str, str]] = field(default_factory=list)  # the lines of metrics.csv
    samples: list[dict[str, str]] = field(default_factory=list)
    predictions: dict[str, Any] = field(default_factory=dict)  # of predictions.json, may be empty
    missing_files: list[str] = field(default_factory=list)  # absent or damaged
    # Set by `compare_jobs`.
    is_part_baseline: bool = False  # a part of the teacher that learns from labels
    # None where the sweep has no job to compare with.
    gap_closed: float | None = None  # relative to the baseline with the same training settings
    gap_closed_best_baseline: float | None = None
    gain_over_baseline: float | None = None  # in nats per token
    gain_over_label_smoothing: float | None = None

    @property
    def is_baseline(self) -> bool:
        return bool(self.config) and (self.is_part_baseline or is_baseline(self.config))

    @property
    def method(self) -> str:
        """`distilled`, `baseline`, or `label smoothing`: a baseline with smoothed labels."""
        if not self.is_baseline:
            return "distilled"
        return "label smoothing" if self.config["loss"].get("label_smoothing") else "baseline"

    @property
    def nll(self) -> float | None:
        return self.score("nll")

    @property
    def bits_per_byte_or_nll(self) -> float | None:
        """Bits per byte, which do not depend on the tokenizer; nll for tasks without bytes."""
        bits_per_byte = self.score("bits_per_byte")
        return self.nll if bits_per_byte is None else bits_per_byte

    def score(self, key: str) -> float | None:
        """A score of the student; None if absent, NaN or Inf."""
        value = (self.results.get("student") or {}).get(key)
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    def cost(self, key: str) -> float:
        return float((self.results.get("cost") or {}).get(key) or 0.0)

    @property
    def steps(self) -> tuple[int, int] | None:
        """The optimizer steps that the student made, and those asked for; None where unknown."""
        training = self.results.get("training") or {}
        has_both = {"steps", "max_steps"} <= training.keys()
        return (training["steps"], training["max_steps"]) if has_both else None

    @property
    def is_cut_short(self) -> bool:
        return self.steps is not None and self.steps[0] < self.steps[1]

    @property
    def reused(self) -> bool:
        """Whether the results were copied from another job with the same settings."""
        return "same_as" in self.results

    @property
    def name_without_seed(self) -> str:
        parts = [part for part in self.name.split(",") if not part.startswith("seed=")]
        return ",".join(parts) or "job"

    @property
    def failure_reason(self) -> str:
        """One line on why the job has no results; empty if it has."""
        if error := str(self.results.get("error") or "").strip():
            return error.splitlines()[0]
        status = self.results["status"]
        if status == "running":
            return f"running, or killed before its end{self._last_step()}"
        if status == "finished" and self.results.get("student") and self.nll is None:
            return "finished without a finite nll"
        return "" if status == "finished" else status

    def _last_step(self) -> str:
        steps = [int(point["step"]) + 1 for point in self.curves if point["step"].isdigit()]
        max_steps = self.config["student"]["max_steps"] if self.config else None
        of = "" if max_steps is None else f" of {max_steps}"
        return f", at step {max(steps)}{of}" if steps else ""


def job_folders(folder: Path) -> list[Path]:
    """The folders below `folder` with results, or with the config of a training job.

    Raises OSError if `folder` is not readable.
    """
    if folder.is_dir():
        os.scandir(folder).close()  # rglob silently skips an unreadable folder
    with_results = {file.parent for file in folder.rglob(RESULTS)}
    with_config = {f.parent.parent for f in folder.rglob(str(CONFIG)) if _is_training_job(f)}
    return sorted(with_results | with_config)


def _is_training_job(config: Path) -> bool:
    """`stage=report` and the like leave a config too."""
    stage = re.search(r"^stage: (\S+)", config.read_text(errors="replace"), re.MULTILINE)
    return stage is None or stage[1] not in STAGES or STAGES[stage[1]].makes_jobs


def distinguishing_overrides(jobs: list[list[str]]) -> list[str]:
    """For each job a name: its overrides that not all jobs share. Empty if it has none."""
    known = [set(overrides) for overrides in jobs if overrides]
    names = ([o for o in job if not all(o in others for others in known)] for job in jobs)
    return [",".join(overrides).replace("experiment/", "") for overrides in names]


def read_jobs(*sweeps: Path) -> list[JobRecord]:
    """All jobs below these folders, named by their distinguishing overrides.

    Of several sweeps, each job is also named by its sweep, which counts as a swept key.
    """
    folders = [(one, name) for sweep, name in _sweep_names(sweeps) for one in job_folders(sweep)]
    jobs = [_read_job(folder) for folder, _ in folders]
    names = distinguishing_overrides([job.results["overrides"] for job in jobs])
    keys = _swept_keys(jobs)
    for job, name, (_, sweep) in zip(jobs, names, folders, strict=True):
        job.name = name or job.name
        job.swept = {key: _value_of(job, key) for key in keys}
        if sweep:
            job.name, job.swept = f"sweep={sweep},{job.name}", {"sweep": sweep, **job.swept}
    return jobs


def _sweep_names(sweeps: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each folder with its name, or its path where two have one name; "" for a single folder."""
    names = Counter(sweep.resolve().name for sweep in sweeps)
    if len(sweeps) < 2:
        return [(sweep, "") for sweep in sweeps]
    return [
        (sweep, name if names[name := sweep.resolve().name] < 2 else str(sweep)) for sweep in sweeps
    ]


def varying_settings(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Every key whose value differs between the configs of jobs, with its value in each."""
    flat = [flatten({k: v for k, v in one.items() if k not in WITHOUT_EFFECT}) for one in configs]
    known = [one for one in flat if one]
    keys = dict.fromkeys(key for one in known for key in one)
    differ = [k for k in keys if any(one.get(k) != known[0].get(k) for one in known)]
    return {key: [one.get(key) for one in flat] for key in differ}


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _read_job(folder: Path) -> JobRecord:
    job = JobRecord(folder, folder.name, read_config(folder), results_or_reason(folder))
    if not job.config:
        job.missing_files.append(str(CONFIG))
    if job.results["status"] == "unreadable":
        job.missing_files.append(RESULTS)

    def read(name: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        try:
            return reader(folder / name)
        except (OSError, ValueError, TypeError, KeyError, csv.Error):
            job.missing_files.append(name)
            return empty

    job.curves = read("metrics.csv", read_curves, [])
    job.samples = read(SAMPLES, read_samples, [])
    if (folder / PREDICTIONS).exists():  # runs of older versions have none
        job.predictions = read(PREDICTIONS, read_predictions, {})
    return job


def _swept_keys(jobs: list[JobRecord]) -> list[str]:
    """The keys of overrides whose values differ between jobs; groups first, `seed` last."""
    known = [job for job in jobs if job.results["overrides"]]
    keys = dict.fromkeys(key for job in known for key in _overridden(job))
    differ = [key for key in keys if len({_value_of(job, key) for job in known}) > 1]
    swept = [key for key in differ if key.split(".")[0] not in WITHOUT_EFFECT]
    return sorted(swept, key=lambda key: (key == "seed", "." in key))


def _overridden(job: JobRecord) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in job.results["overrides"] if "=" in o)


def _value_of(job: JobRecord, key: str) -> str:
    """From the job's overrides, else from its config; `default` for an unnamed group choice."""
    if (value := _overridden(job).get(key)) is not None:
        return _normalized(value)
    node: Any = job.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return "default" if node is None or isinstance(node, dict) else _normalized(str(node))


def _normalized(value: str) -> str:
    """1.0 as 1, so that both count as one value."""
    try:
        number = float(value)
    except ValueError:
        return value
    return short if float(short := f"{number:g}") == number else value
