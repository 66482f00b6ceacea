"""A sweep as results.csv, and as a table in the terminal."""

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from lightning_distill.metrics.declarations import AGREEMENT, ECE, NLL, Metric, task_metrics
from lightning_distill.report.formatting import (
    jobs_text,
    mean_and_deviation,
    millions,
    print_table,
    short_name,
    steps_text,
    terminal_width,
)
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.comparison import group_by_setting
from lightning_distill.sweeps.records import JobRecord, flatten, varying_settings

STEPS = "steps"  # the column
# Columns of the terminal's table that are left out where it is narrow, the first one first.
LEFT_OUT = ("… of best", ECE.label, "size", "seconds", STEPS, "perplexity", AGREEMENT.label)


def task_scores(jobs: list[JobRecord]) -> tuple[Metric, ...]:
    """The metrics that only some tasks have: the package's, and those that the jobs declare."""
    return task_metrics(str(job.config["data"].get("_target_")) for job in jobs if job.config)


def csv_rows(jobs: list[JobRecord]) -> list[dict[str, Any]]:
    """For each job its varying settings, results.json with dotted keys, and comparisons."""
    varying = varying_settings([job.config for job in jobs])
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
        rows.append({"job": job.name, "method": job.method} | settings | results | comparisons)
    return rows


def write_csv(jobs: list[JobRecord], file: Path) -> None:
    rows = csv_rows(jobs)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, text.getvalue().encode())


def print_results(jobs: list[JobRecord], width: int | None = None) -> None:
    """The table in the terminal, a column for each key that the sweep varies.

    width: of the terminal, None to ask it. Where the table is wider, columns are left out in the
    order of LEFT_OUT, and named below it.
    """
    headings, *lines = table_cells(jobs, by_setting=True)
    width = terminal_width() if width is None else width
    kept = columns_that_fit(headings, lines, width)
    left_out = [heading for i, heading in enumerate(headings) if i not in kept]
    notes = [cut_short_note(jobs)] if len(jobs) > 1 else []  # a single run has warned of it
    if left_out:
        notes.append(f"not shown in {width} columns: {', '.join(left_out)}")
    table = Table(
        title="on the held-out test split",
        title_justify="left",
        caption="\n".join(filter(None, notes)),
        caption_justify="left",
    )
    settings = len(setting_keys(jobs)) or 1
    for i in kept:
        justify: Any = "left" if i < settings else "right"
        table.add_column(headings[i], justify=justify, overflow="fold")
    for cells in lines:
        table.add_row(*(cells[i] for i in kept))
    print_table(table, width)


def columns_that_fit(
    headings: Sequence[str], lines: Sequence[Sequence[str]], width: int
) -> list[int]:
    """The indices of the columns to show, without those of LEFT_OUT that do not fit."""
    widths = [max(map(cell_len, column)) for column in zip(headings, *lines, strict=True)]
    kept = list(range(len(headings)))
    for heading in LEFT_OUT:
        if sum(widths[i] + 3 for i in kept) + 1 <= width:  # of a cell, its padding and a line
            break
        kept = [i for i in kept if headings[i] != heading]
    return kept


def setting_keys(jobs: list[JobRecord]) -> list[str]:
    """The keys that the sweep varies; rows are means over the seed."""
    return [key for key in jobs[0].swept if key != "seed"] if jobs else []


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


def table_cells(jobs: list[JobRecord], by_setting: bool = False) -> list[tuple[str, ...]]:
    """The headings, a line for each teacher, then one for each setting; the best first.

    by_setting: the columns at the left are the values of the keys that the sweep varies, in place
    of the job's name. Columns of task scores that are empty are left out, and the steps where no
    training was cut short.
    """
    keys = setting_keys(jobs) if by_setting else []
    first = [short_name(f"{key}=", keys).rstrip("=") for key in keys] or ["job"]

    def named(job: JobRecord, name: str) -> tuple[str, ...]:
        return tuple(job.swept[key] for key in keys) or (name,)

    optional = task_scores(jobs)
    scores = (NLL, *optional, AGREEMENT, ECE)
    labels_of_scores = (one.label for one in scores)
    headings = (*first, "size", *labels_of_scores, "gap closed", "… of best", STEPS, "seconds")
    cut_short = any(job.is_cut_short for job in jobs)
    lines = []
    for teacher, seconds in teachers(jobs):
        ends = ("", f"{seconds:.0f}" if seconds else "reused")
        name = ("teacher", *[""] * (len(first) - 1))
        lines.append((*name, *_cells([teacher], [[], []], ends, scores)))
    for group in group_by_setting(jobs):
        seeds = f" ({len(group.jobs)} seeds)" if len(group.jobs) > 1 else ""
        students = [job.results["student"] for job in group.jobs]
        best = [job.gap_closed_best_baseline for job in group.jobs]
        gaps = [group.gaps_closed(), [gap for gap in best if gap is not None]]
        ends = (steps_text(job.steps for job in group.jobs), training_seconds(group.jobs))
        *names, last = named(group.jobs[0], group.name)
        lines.append((*names, last + seeds, *_cells(students, gaps, ends, scores)))
    for job in jobs:
        if job.failure_reason and job.nll is None:
            failed = named(job, job.name)
            rest = [""] * (len(headings) - len(failed) - 1)
            lines.append((*failed, job.results["status"], *rest))
    labels = {one.label for one in optional}
    kept = [
        i
        for i, heading in enumerate(headings)
        if (heading not in labels or any(line[i] for line in lines))
        and (heading != STEPS or cut_short)
    ]
    return [tuple(line[i] for i in kept) for line in [headings, *lines]]


def _cells(
    models: list[dict[str, Any]],
    gaps: list[list[float]],
    ends: tuple[str, ...],
    scores: tuple[Metric, ...],
) -> tuple[str, ...]:
    return (
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
