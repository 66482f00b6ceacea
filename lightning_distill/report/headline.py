"""The top of the page: the best setting, its lead, means over seeds, and unfinished jobs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from lightning_distill.report.formatting import short_name, steps_text
from lightning_distill.report.tables import task_scores, teachers, training_seconds
from lightning_distill.sweeps.comparison import (
    Ranking,
    SeedGroup,
    group_by_setting,
    rank_settings,
)
from lightning_distill.sweeps.records import JobRecord
from lightning_distill.sweeps.statistics import confidence_half_width

UNITS = {"nll": "nats", "bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half its confidence interval, as text; empty without values."""

    text: str
    half_width: str = ""

    @classmethod
    def of(
        cls, values: Sequence[float], digits: int, scale: float = 1, unit: str = ""
    ) -> "Estimate":
        if not values:
            return cls("")
        width = confidence_half_width(values)
        text = f"{scale * mean(values):,.{digits}f}{unit}"
        return cls(text, f"{scale * width:.{digits}f}" if width else "")


def headline(jobs: list[JobRecord]) -> dict[str, Any]:
    """`ranking` is None if no student has finished; then `teacher` is the best teacher, if any."""
    ranking = rank_settings(jobs)
    if ranking is None:
        scored = teachers(jobs)
        return {"ranking": None, "teacher": scored[0][0] if scored else None}
    best = ranking.best
    scores = [
        (one.label, Estimate.of(best.scores(one.key), one.digits)) for one in task_scores(jobs)
    ]
    return {
        "ranking": ranking,
        "name": group_name(best),
        "gap": Estimate.of(best.gaps_closed(), 0, 100, " %"),
        "nll": Estimate.of(best.scores("nll"), 3),
        "scores": [(heading, estimate) for heading, estimate in scores if estimate.text],
        "parameters": best.mean("parameters"),
        "teacher": best.jobs[0].results.get("teacher"),
        "lead": _lead(ranking),
    }


def _lead(ranking: Ranking) -> dict[str, Any] | None:
    """None without a runner-up."""
    if ranking.runner_up is None:
        return None
    lead = {
        "text": f"{ranking.lead:.2g} {UNITS[ranking.metric]}",
        "runner_up": group_name(ranking.runner_up),
        "seeds": len(ranking.runner_up.jobs),
        "interval": None,
    }
    if (width := ranking.lead_half_width) is not None:
        interval = f"{ranking.lead - width:.3f} to {ranking.lead + width:.3f}"
        lead["interval"] = interval.replace("-", "−")
    return lead


def group_name(group: SeedGroup) -> str:
    return short_name(group.name, group.jobs[0].swept)


def seeds_table(jobs: list[JobRecord]) -> dict[str, Any] | None:
    """Means over seeds; None if no setting has more than one seed."""
    groups = group_by_setting(jobs)
    if all(len(group.jobs) < 2 for group in groups):
        return None
    scores = [one for one in task_scores(jobs) if any(group.scores(one.key) for group in groups)]
    names = [one.label for one in scores]
    cut_short = any(job.is_cut_short for job in jobs)
    steps = ["steps"] if cut_short else []
    rows = [
        (
            group_name(group),
            [
                Estimate.of(group.scores("nll"), 3),
                Estimate.of(group.gaps_closed(), 0, 100, " %"),
                *(Estimate.of(group.scores(one.key), one.digits) for one in scores),
                Estimate.of(group.scores("teacher_agreement"), 2),
                Estimate(str(len(group.jobs))),
                *([Estimate(steps_text(job.steps for job in group.jobs))] if cut_short else []),
                Estimate(training_seconds(group.jobs)),
            ],
        )
        for group in groups
    ]
    return {
        "headings": ("nll", "gap closed", *names, "agreement", "seeds", *steps, "seconds"),
        "rows": rows,
    }


def unfinished(jobs: list[JobRecord], not_started: list[list[str]]) -> dict[str, Any]:
    """Every job without results: why, and where its log is."""

    def log_of(job: JobRecord) -> Path | None:
        log = job.folder / "job.log"
        return log if log.exists() else None

    return {
        "ended": [(job, log_of(job)) for job in jobs if job.failure_reason],
        "not_started": [shlex.join(overrides) for overrides in not_started],
    }
