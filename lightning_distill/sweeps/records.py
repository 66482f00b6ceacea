"""A sweep's jobs as their folders show them, whatever of these is there."""

import csv
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_distill.sweeps.job import RESULTS, check_results, read_results
from lightning_distill.sweeps.job_key import WITHOUT_EFFECT, is_baseline
from lightning_distill.sweeps.naming import affects_identity

SETTINGS = Path(".hydra") / "config.yaml"
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError)  # of what YAML holds
GROUPS = ("data", "student", "loss", "transfer", "optimizer", "schedule", "trainer")


@dataclass
class Row:
    """A job, as its folder shows it."""

    folder: Path
    name: str
    cfg: dict[str, Any]  # empty where .hydra/ is not readable
    results: dict[str, Any]
    settings: dict[str, str] = field(default_factory=dict)  # what this job has of what is swept
    gap_closed: float | None = None  # over the same job without a teacher
    gap_closed_best: float | None = None  # over the best without one in this sweep
    gain: float | None = None  # in nll, over the same job without a teacher
    gain_over_smoothing: float | None = None  # and over that with smoothed labels
    curves: list[dict[str, str]] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # files that are absent or damaged

    @property
    def is_baseline(self) -> bool:
        return bool(self.cfg) and is_baseline(self.cfg)

    @property
    def smooths(self) -> bool:
        return bool(self.cfg) and bool(self.cfg["loss"].get("label_smoothing"))

    @property
    def kind(self) -> str:
        if not self.is_baseline:
            return "distilled"
        return "label smoothing" if self.smooths else "baseline"

    @property
    def nll(self) -> float | None:
        return self.score("nll")

    @property
    def bits(self) -> float | None:
        """Bits a byte, which tokens do not matter to; of what has no bytes, nll."""
        bits = self.score("bits_per_byte")
        return self.nll if bits is None else bits

    def score(self, key: str) -> float | None:
        """A number of the student's, where it is one."""
        value = (self.results.get("student") or {}).get(key)
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    def cost(self, key: str) -> float:
        return float((self.results.get("cost") or {}).get(key) or 0.0)

    @property
    def took_over(self) -> bool:
        """Whether its results are another job's, which has the same settings."""
        return "same_as" in self.results

    @property
    def label(self) -> str:
        """What the seeds of one setting have in common."""
        parts = [part for part in self.name.split(",") if not part.startswith("seed=")]
        return ",".join(parts) or "job"

    @property
    def why(self) -> str:
        """The first line of why it has no results; empty where it has."""
        if error := str(self.results.get("error") or "").strip():
            return error.splitlines()[0]
        status = self.results["status"]
        if status == "running":
            steps = [int(point["step"]) + 1 for point in self.curves if point["step"].isdigit()]
            of = f" of {self.cfg['student']['max_steps']}" if self.cfg else ""
            reached = f", at step {max(steps)}{of}" if steps else ""
            return f"running, or killed before its end{reached}"
        if status == "finished" and self.results.get("student") and self.nll is None:
            return "finished without a finite nll"
        return "" if status == "finished" else status


def job_folders(folder: Path) -> list[Path]:
    """Of the jobs below a folder: what holds results, or settings to get them with."""
    if folder.is_dir():
        os.scandir(folder).close()  # raises where it may not be read, which rglob passes over
    with_results = {file.parent for file in folder.rglob(RESULTS)}
    with_settings = {f.parent.parent for f in folder.rglob(str(SETTINGS)) if _trains(f)}
    return sorted(with_results | with_settings)


def _trains(settings: Path) -> bool:
    """Whether results are to be expected: a report's own run has settings, too."""
    stage = re.search(r"^stage: (\w+)", settings.read_text(errors="replace"), re.MULTILINE)
    return stage is None or stage[1] in ("distill", "teacher", "transfer")


def distinguishing_overrides(jobs: list[list[str]]) -> list[str]:
    """Of each job's overrides those that not all have, as its name; empty where it has no other."""
    told = [set(overrides) for overrides in jobs if overrides]
    own = ([o for o in job if not all(o in others for others in told)] for job in jobs)
    return [",".join(overrides).replace("experiment/", "") for overrides in own]


def read_jobs(folder: Path) -> list[Row]:
    """Each called by what sets it apart from the others."""
    rows = [_read(one) for one in job_folders(folder)]
    for row, name in zip(
        rows, distinguishing_overrides([r.results["overrides"] for r in rows]), strict=True
    ):
        row.name = name or row.name
    keys = _swept(rows)
    for row in rows:
        row.settings = {key: _value(row, key) for key in keys}
    return rows


def varying(rows: list[Row]) -> dict[str, list[Any]]:
    """Every setting in the jobs' configurations that is not the same in all, by its full name."""
    flat = [flatten({k: v for k, v in r.cfg.items() if k not in WITHOUT_EFFECT}) for r in rows]
    known = [one for one in flat if one]
    keys = dict.fromkeys(key for one in known for key in one)
    differ = [k for k in keys if any(one.get(k) != known[0].get(k) for one in known)]
    return {key: [one.get(key) for one in flat] for key in differ}


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def planned(folder: Path) -> tuple[list[str], list[list[str]]]:
    """The overrides of the sweep's last command, and those of each job that it asked for.

    Hydra notes the first in multirun.yaml. The second is empty where a sweeper chose the values.
    """
    try:
        noted = OmegaConf.load(folder / "multirun.yaml")
        command = [str(override) for override in OmegaConf.select(noted, "hydra.overrides.task")]
        sweeper = OmegaConf.select(noted, "hydra.sweeper")
        if not sweeper["_target_"].endswith(".BasicSweeper"):
            return command, []
        given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*given, *command])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except (OSError, *DAMAGE, OmegaConfBaseException, HydraException):
        return [], []
    return command, jobs


def not_begun(rows: list[Row], jobs: list[list[str]]) -> list[list[str]]:
    """Which of the jobs asked for have no folder yet."""

    def name(overrides: list[str]) -> frozenset[str]:
        return frozenset(o for o in overrides if affects_identity(o.split("=")[0]))

    there = {name(row.results["overrides"]) for row in rows}
    return [job for job in jobs if name(job) not in there]


def _read(folder: Path) -> Row:
    row = Row(folder, folder.name, _read_settings(folder), _read_results(folder))
    if not row.cfg:
        row.missing.append(str(SETTINGS))
    if row.results["status"] == "unreadable":
        row.missing.append(RESULTS)
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", errors="replace") as lines:
            # The last line may have been cut off.
            row.curves = [
                p for p in csv.DictReader(lines) if p.get("step") and None not in p.values()
            ]
    except (OSError, csv.Error):
        row.missing.append("metrics.csv")
    try:
        found = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        row.samples = [one for one in found if {"prompt", "student"} <= set(one)]
    except (OSError, ValueError, TypeError):
        row.missing.append("samples.json")
    return row


def _read_results(folder: Path) -> dict[str, Any]:
    """With a status and the overrides, whatever the file holds."""
    try:
        found = read_results(folder)
        check_results(found)
    except FileNotFoundError:
        found = {"status": "no results", "error": f"no {RESULTS}: killed before it began"}
    except (OSError, ValueError) as error:
        found = {"status": "unreadable", "error": f"{RESULTS} cannot be read: {error}"}
    if not isinstance(found.get("overrides"), list):
        try:
            noted = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        except (OSError, ValueError, yaml.YAMLError):
            noted = None
        found["overrides"] = noted if isinstance(noted, list) else []
    found["overrides"] = [str(override) for override in found["overrides"]]
    return found


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        cfg = OmegaConf.to_container(OmegaConf.load(folder / SETTINGS))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return {}
    if not isinstance(cfg, dict) or not all(isinstance(cfg.get(g), dict) for g in GROUPS):
        return {}
    return {str(key): value for key, value in cfg.items()}


def _swept(rows: list[Row]) -> list[str]:
    """The keys of overrides that not all jobs have alike, in the order of their names."""
    told = [row for row in rows if row.results["overrides"]]
    keys = dict.fromkeys(key for row in told for key in _given(row))
    found = [key for key in keys if len({_value(row, key) for row in told}) > 1]
    matter = [key for key in found if key.split(".")[0] not in WITHOUT_EFFECT]
    return sorted(matter, key=lambda key: (key == "seed", "." in key))


def _given(row: Row) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in row.results["overrides"] if "=" in o)


def _value(row: Row, key: str) -> str:
    """What a job has of a setting, whether its command said so or not."""
    if (given := _given(row).get(key)) is not None:
        return _one_spelling(given)
    node: Any = row.cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return "default" if node is None or isinstance(node, dict) else _one_spelling(str(node))


def _one_spelling(value: str) -> str:
    """1 and 1.0 are one value."""
    try:
        number = float(value)
    except ValueError:
        return value
    return short if float(short := f"{number:g}") == number else value
