"""A sweep as results.csv, and as a table in the terminal."""

import csv
import io
import shlex
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_distill.metrics.declarations import AGREEMENT, ECE, NLL, Metric, task_metrics
from lightning_distill.report.formatting import (
    jobs_text,
    mean_and_deviation,
    millions,
    print_table,
    steps_text,
)
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.comparison import group_by_setting
from lightning_distill.sweeps.records import JobRecord, flatten, varying_settings

STEPS = "steps"  # the column


def task_scores(jobs: list[JobRecord]) -> tuple[Metric, ...]:
    """The metrics that only some tasks have: the package's, and those that the jobs declare."""
    return task_metrics(str(job.config["data"].get("_target_")) for job in jobs if job.config)


def csv_rows(jobs: list[JobRecord]) -> list[dict[str, Any]]:
    """For each job its varying settings, results.json with dotted keys, and comparisons."""
    varying = varying_settings(jobs)
    rows = []
    for index, job in enumerate(jobs):
        results = flatten({k: v for k, v in job.results.items() if v is not None})
        results["overrides"] = shlex.join(job.results["overrides"])
        settings = job.swept | {key: values[index] for key, values in varying.items()}
        comparisons = {
            "gap_closed": job.gap_closed,
            "gap_closed_best_baseline": job.gap_closed_best_baseline,
            "gain_over_baseline": job.gain_over_baseline,
            "gain_over_label_smoothing": job.gain_over_label_smoothing,
        }
        rows.append({"job": job.name} | settings | results | comparisons)
    return rows


def write_csv(jobs: list[JobRecord], file: Path) -> None:
    rows = csv_rows(jobs)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, text.getvalue().encode())


def print_results(jobs: list[JobRecord]) -> None:
    table = Table(
        title="on the held-out test split",
        title_justify="left",
        caption=cut_short_note(jobs),
        caption_justify="left",
    )
    headings, *lines = table_cells(jobs)
    for heading in headings:
        is_text = heading == "job"
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for cells in lines:
        table.add_row(*cells)
    print_table(table)


def cut_short_note(jobs: list[JobRecord]) -> str:
    """How many students were trained for fewer steps than asked; empty if none was."""
    cut = [job for job in jobs if job.is_cut_short]
    if not cut:
        return ""
    steps = steps_text(job.steps for job in cut)
    return (
        f"{len(cut)} of {jobs_text(len(jobs))} cut short, at step {steps}: by trainer.max_time, "
        "early stopping or a limit. Means over seeds, and comparisons of settings, are then of "
        "trainings of unequal length."
    )


def table_cells(jobs: list[JobRecord]) -> list[tuple[str, ...]]:
    """The headings, a line for each teacher, then one for each setting; the best first.

    Columns of task scores that are empty are left out, and the steps where no training was cut
    short.
    """
    optional = task_scores(jobs)
    scores = (NLL, *optional, AGREEMENT, ECE)
    names = (one.label for one in scores)
    headings = ("job", "size", *names, "gap closed", "… of best", STEPS, "seconds")
    cut_short = any(job.is_cut_short for job in jobs)
    lines = []
    for teacher, seconds in teachers(jobs):
        ends = ("", f"{seconds:.0f}" if seconds else "reused")
        lines.append(_cells("teacher", [teacher], [[], []], ends, scores))
    for group in group_by_setting(jobs):
        seeds = f" ({len(group.jobs)} seeds)" if len(group.jobs) > 1 else ""
        students = [job.results["student"] for job in group.jobs]
        best = [job.gap_closed_best_baseline for job in group.jobs]
        gaps = [group.gaps_closed(), [gap for gap in best if gap is not None]]
        ends = (steps_text(job.steps for job in group.jobs), training_seconds(group.jobs))
        lines.append(_cells(group.name + seeds, students, gaps, ends, scores))
    for job in jobs:
        if job.failure_reason and job.nll is None:
            lines.append((job.name, job.results["status"], *[""] * (len(headings) - 2)))
    labels = {one.label for one in optional}
    kept = [
        i
        for i, heading in enumerate(headings)
        if (heading not in labels or any(line[i] for line in lines))
        and (heading != STEPS or cut_short)
    ]
    return [tuple(line[i] for i in kept) for line in [headings, *lines]]


def _cells(
    name: str,
    models: list[dict[str, Any]],
    gaps: list[list[float]],
    ends: tuple[str, ...],
    scores: tuple[Metric, ...],
) -> tuple[str, ...]:
    return (
        name,
        millions(models[0]["parameters"]),
        *(mean_and_deviation([m.get(one.key) for m in models], one.digits) for one in scores),
        *(mean_and_deviation([100 * gap for gap in one], 0, " %") for one in gaps),
        *ends,
    )


def teachers(jobs: list[JobRecord]) -> list[tuple[dict[str, Any], float]]:
    """The scores of each teacher and the seconds its training took here; the best first."""
    by_nll: dict[float, tuple[dict[str, Any], float]] = {}
    for job in jobs:
        if teacher := job.results.get("teacher"):
            seconds = by_nll.get(teacher["nll"], (teacher, 0.0))[1]
            by_nll[teacher["nll"]] = (teacher, max(seconds, job.cost("teacher_seconds")))
    return [by_nll[nll] for nll in sorted(by_nll)]


def training_seconds(jobs: list[JobRecord]) -> str:
    """Of the students; jobs that reused another's results were not trained."""
    trained = [job.cost("student_seconds") for job in jobs if not job.reused]
    return mean_and_deviation(trained, 0) if trained else "reused"
