"""The page's table of jobs: its columns, its cells, and what they mean."""

import math
from dataclasses import dataclass
from typing import Any

from lightning_distill.metrics.declarations import (
    AGREEMENT,
    COST,
    ECE,
    KL,
    NLL,
    PARAMETERS,
    SPEED,
    Metric,
    is_metric,
)
from lightning_distill.report.formatting import short_name, steps_text
from lightning_distill.report.tables import csv_rows, task_scores, teachers
from lightning_distill.sweeps.comparison import rank_settings
from lightning_distill.sweeps.records import JobRecord, flatten


@dataclass(frozen=True)
class Column:
    """A column of numbers in the table of jobs; `key` is that of results.csv."""

    key: str
    heading: str
    digits: int
    meaning: str
    factor: float = 1
    unit: str = ""

    def format(self, value: float) -> str:
        return f"{self.factor * value:,.{self.digits}f}{self.unit}"


def _score(group: str, metric: Metric, **shown: Any) -> Column:
    """A column of a declared metric. shown: fields of the column that differ from the metric's."""
    fields: dict[str, Any] = {
        "heading": metric.label,
        "digits": metric.digits,
        "meaning": metric.meaning,
    }
    return Column(f"{group}.{metric.key}", **(fields | shown))


SECONDS, RATE, MEMORY = (
    next(metric for metric in COST if metric.key == key)
    for key in ("student_seconds", "student_tokens_per_second", "peak_memory_mb")
)
WRITING_RATE, FIRST_TOKEN, WEIGHTS = SPEED
COLUMNS = (
    Column("gap_closed", "gap closed", 1, "(baseline − student) / (baseline − teacher)", 100, " %"),
    Column(
        "gap_closed_best_baseline",
        "… of best",
        1,
        "the same, from the best baseline",
        100,
        " %",
    ),
    Column("gain_over_baseline", "over baseline", 3, "nll gained over plain training"),
    Column("gain_over_label_smoothing", "over smoothing", 3, "nll gained over label smoothing"),
    _score("student", AGREEMENT, digits=3),
    _score("student", KL),
    _score("student", ECE),
    _score("student", PARAMETERS, heading="size, M", digits=3, factor=1e-6),
    _score("teacher", NLL, heading="teacher's nll", meaning="the teacher's own"),
    Column("training.steps", "steps", 0, "optimizer steps of the student, and those asked for"),
    *(_score("cost", metric) for metric in (SECONDS, RATE, MEMORY)),
    _score("student", WRITING_RATE, heading="generates, tokens/s"),
    _score("student", FIRST_TOKEN, digits=1, factor=1e3, unit=" ms"),
    _score("student", WEIGHTS, digits=1, factor=1e-6, unit=" MB"),
)


METHODS = (
    "distilled: the student learns from its teacher; baseline: from the text alone; "
    "label smoothing: a baseline with smoothed labels"
)
TERMS = {
    "baseline of a job": "the job without a teacher with the same student, data, seed and steps",
    "± after a mean": "half the 95 % confidence interval over seeds (Student's t), unless it says "
    "otherwise",
    "T, temperature": "divides both models' logits; the gradient of its term is rescaled by T²",
    "alpha": "weight of the teacher's term of the loss; 0 is training without a teacher",
    "confidence": "the probability that a model gives to the class it holds most probable",
    "η²": "share of the variance between jobs that a setting explains",
}


@dataclass(frozen=True)
class Cell:
    """value: what the page sorts by; empty where there is no number."""

    column: str
    text: str = ""
    value: float | str = ""
    title: str = ""


def jobs_table(jobs: list[JobRecord]) -> dict[str, Any]:
    """A row for each job, the best first, with the numbers of results.csv."""
    rows = list(zip(jobs, csv_rows(jobs), strict=True))
    rows.sort(key=lambda row: math.inf if row[0].nll is None else row[0].nll)
    values = [record for _, record in rows]
    metrics = (NLL, *task_scores(jobs))
    scores = [Column(f"student.{m.key}", m.label, m.digits, m.meaning) for m in metrics]
    columns = [
        one
        for one in (*scores, *COLUMNS, *_lm_eval_columns(values))
        if _is_informative(one, values)
    ]
    keys = list(jobs[0].swept)
    labels = [(key, short_name(f"{key}=", keys).rstrip("="), key) for key in keys]
    labels = labels or [("job", "job", "the folder")]
    labels.append(("method", "method", METHODS))
    if any(job.failure_reason for job in jobs):
        labels.append(("status", "status", "of the job"))
    ranking = rank_settings(jobs)
    best = ranking.best.jobs if ranking else []
    return {
        "labels": labels,
        "columns": columns,
        "teachers": [
            [_teacher_cell(teacher, seconds, column) for column in columns]
            for teacher, seconds in teachers(jobs)
        ],
        "rows": [
            {
                "job": job,
                "name": job.name,
                "is_best": any(job is one for one in best),
                "method": job.method,
                "labels": [(key, str(record.get(key, ""))) for key, *_ in labels],
                "cells": [_cell(job, record, column) for column in columns],
            }
            for job, record in rows
        ],
    }


def _teacher_cell(teacher: dict[str, Any], seconds: float, column: Column) -> Cell:
    """The teacher's own score in a column of the student's."""
    scores = flatten(teacher)
    value = scores.get(column.key.removeprefix("student."))
    if column.key == "cost.student_seconds":
        value = seconds or None
    if value is None or not _is_finite(value):
        return Cell(column.key)
    return Cell(column.key, column.format(value), value)


def glossary(table: dict[str, Any]) -> list[tuple[str, str]]:
    """What the columns of `jobs_table` mean, then the other terms of the page."""
    columns = [(column.heading, column.meaning) for column in table["columns"]]
    return [*columns, ("method", METHODS), *TERMS.items()]


def _lm_eval_columns(rows: list[dict[str, Any]]) -> list[Column]:
    """A column for each metric of lm-eval's tasks."""
    prefix = "student.tasks."
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(prefix))
    columns = []
    for key in filter(is_metric, keys):
        teacher_key = key.replace("student", "teacher", 1)
        scores = sorted({row[teacher_key] for row in rows if teacher_key in row})
        teacher = f"; the teacher's: {', '.join(f'{s:.3f}' for s in scores)}" if scores else ""
        heading = " ".join(key.removeprefix(prefix).rsplit(".", 1))
        columns.append(Column(key, heading, 3, f"lm-eval{teacher}"))
    return columns


def _is_informative(column: Column, rows: list[dict[str, Any]]) -> bool:
    """Whether a column has a number that no other column shows."""
    if column.key == "teacher.nll" and len({row.get("student.nll") for row in rows}) > 1:
        return len({row.get(column.key) for row in rows} - {None}) > 1
    if column.key == "training.steps":
        return any(row.get(column.key, 0) < row.get("training.max_steps", 0) for row in rows)
    if column.key == "gap_closed_best_baseline":
        rows = [row for row in rows if row.get(column.key) != row.get("gap_closed")]
    return any(_is_finite(row.get(column.key)) for row in rows)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _cell(job: JobRecord, record: dict[str, Any], column: Column) -> Cell:
    value = record.get(column.key)
    if value is None or not _is_finite(value):
        return Cell(column.key)
    if column.key == "cost.student_seconds" and job.reused:
        return Cell(column.key, "reused", value, f"the results of {job.results['same_as']}")
    if column.key == "training.steps" and job.is_cut_short:
        return Cell(column.key, steps_text([job.steps]), value, "cut short")
    return Cell(column.key, column.format(value), value)
