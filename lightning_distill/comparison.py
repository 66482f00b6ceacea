"""A sweep's jobs side by side: what each gained over training without a teacher."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from lightning_distill.artifacts import key_of
from lightning_distill.results import RESULTS, learns_alone, read_results


@dataclass
class Row:
    """A job, as its folder shows it."""

    folder: Path
    name: str
    cfg: dict[str, Any]
    results: dict[str, Any]
    gap_closed: float | None = None  # over the same job without a teacher
    gap_closed_best: float | None = None  # over the best without one in this sweep
    curves: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_baseline(self) -> bool:
        return learns_alone(self.cfg)

    @property
    def nll(self) -> float | None:
        student = self.results.get("student")
        return student["nll"] if student else None

    @property
    def bits(self) -> float | None:
        student = self.results.get("student")
        return student["bits_per_byte"] if student else None


def gather(folder: Path) -> list[Row]:
    """All jobs below a folder, with the share of the gap that each closes."""
    rows = []
    for file in sorted(folder.rglob(RESULTS)):
        said = file.parent / ".hydra" / "config.yaml"
        if not said.exists():
            continue
        cfg = OmegaConf.to_container(OmegaConf.load(said))
        assert isinstance(cfg, dict)
        settings = {str(key): value for key, value in cfg.items()}
        row = Row(file.parent, file.parent.name, settings, read_results(file.parent))
        if (curves := file.parent / "metrics.csv").exists():
            with curves.open() as lines:
                row.curves = list(csv.DictReader(lines))
        rows.append(row)
    all_overrides = [set(row.results["overrides"]) for row in rows]
    for row in rows:
        # A job is called by what sets it apart from the others.
        own = [
            o for o in row.results["overrides"] if not all(o in others for others in all_overrides)
        ]
        row.name = ",".join(own).replace("experiment/", "") or row.name
        row.gap_closed, row.gap_closed_best = _gaps(row, rows)
    return rows


def _gaps(row: Row, rows: list[Row]) -> tuple[float | None, float | None]:
    """(baseline − student) / (baseline − teacher) in bits a byte, which do not depend on the
    tokenizer, for the twin and the best baseline."""
    teacher = row.results.get("teacher")
    if row.bits is None or not teacher or row.is_baseline:
        return None, None
    baselines = [r for r in rows if r.is_baseline and r.bits is not None]
    twins = [r.bits for r in baselines if _twin_key(r) == _twin_key(row)]
    rivals = [r.bits for r in baselines if _rival_key(r) == _rival_key(row)]
    found = []
    for candidates in (twins, rivals):
        best = min((bits for bits in candidates if bits is not None), default=None)
        gap = best - teacher["bits_per_byte"] if best is not None else 0.0
        found.append((best - row.bits) / gap if best is not None and gap > 0 else None)
    return found[0], found[1]


def _twin_key(row: Row) -> str:
    """Equal for jobs that differ only in what the student has from its teacher."""
    same = ("optimizer", "schedule", "trainer")
    steps = {"max_steps": row.cfg["student"]["max_steps"]}
    return key_of({k: row.cfg[k] for k in same} | steps | {"of": _rival_key(row)})


def _rival_key(row: Row) -> str:
    """Equal for jobs that train a student of one size on the same text, however long or well."""
    training = ("max_steps", "initialize", "layers")
    student = {k: v for k, v in row.cfg["student"].items() if k not in training}
    text = {"data": row.cfg["data"], "num_blocks": row.cfg["transfer"]["num_blocks"]}
    return key_of({"student": student, "seed": row.cfg["seed"], **text})


COLUMNS = (
    "job",
    "size",
    "nll",
    "perplexity",
    "agreement",
    "ECE",
    "gap closed",
    "… of best",
    "seconds",
)


def table_cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """A line for each teacher, then one for each job, over its seeds; the best nll first."""
    lines = [*_teacher_lines(rows), *_student_lines(rows)]
    return [cells for _, cells in sorted(lines, key=lambda line: line[0])]


def _teacher_lines(rows: list[Row]) -> Iterator[tuple[float, tuple[str, ...]]]:
    teachers: dict[float, tuple[dict[str, Any], float]] = {}
    for row in rows:
        if found := row.results.get("teacher"):
            seconds = row.results["cost"]["teacher_seconds"]
            known = teachers.get(found["nll"], (found, 0.0))[1]
            teachers[found["nll"]] = (found, max(known, seconds))
    for found, seconds in teachers.values():
        spent = f"{seconds:.0f}" if seconds else "reused"
        yield -math.inf, _cells("teacher", [found], [], [], spent)


def _student_lines(rows: list[Row]) -> Iterator[tuple[float, tuple[str, ...]]]:
    jobs: dict[str, list[Row]] = {}
    for row in rows:
        jobs.setdefault(_without_seed(row.name), []).append(row)
    for name, members in jobs.items():
        # The same job may stand in the folder twice, with seed=0 said and unsaid.
        done = list({row.results["key"]: row for row in members if row.nll is not None}.values())
        students = [row.results["student"] for row in done]
        if students:
            seconds = [row.results["cost"]["student_seconds"] for row in done]
            gaps = [row.gap_closed for row in done], [row.gap_closed_best for row in done]
            label = f"{name} ({len(done)} seeds)" if len(done) > 1 else name
            nll = mean(student["nll"] for student in students)
            yield nll, _cells(label, students, *gaps, _number(seconds, 0))
        for row in members:
            if row.results["status"] != "finished":
                blank = [""] * (len(COLUMNS) - 2)
                yield math.inf, (row.name, row.results["status"], *blank)


def _cells(
    name: str, models: list[dict[str, Any]], gap: list[Any], gap_best: list[Any], seconds: str
) -> tuple[str, ...]:
    def over(key: str, digits: int) -> str:
        return _number([model.get(key) for model in models], digits)

    return (
        name,
        f"{models[0]['parameters'] / 1e6:.2f} M",
        over("nll", 3),
        over("perplexity", 1),
        over("teacher_agreement", 2),
        over("calibration_error", 3),
        _number([100 * g for g in gap if g is not None], 0, " %"),
        _number([100 * g for g in gap_best if g is not None], 0, " %"),
        seconds,
    )


def _number(values: list[Any], digits: int, unit: str = "") -> str:
    """The mean, with the standard deviation where it shows; empty where nothing is known."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    text = f"{mean(known):,.{digits}f}"
    if len(known) > 1 and stdev(known) >= 0.5 * 10**-digits:
        text += f" ± {stdev(known):.{digits}f}"
    return text + unit


def _without_seed(name: str) -> str:
    return ",".join(part for part in name.split(",") if not part.startswith("seed=")) or "job"
