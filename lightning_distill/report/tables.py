"""A sweep as results.csv, and as the table in the terminal."""

import csv
import io
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.comparison import over_seeds
from lightning_distill.sweeps.records import Row, flatten, varying

# What some tasks tell and others do not: the key, its head, digits.
TASK_SCORES = (
    ("perplexity", "perplexity", 1),
    ("accuracy", "accuracy", 3),
    ("f1", "F1", 3),
    ("corrected_omitted_accuracy", "omitted class", 3),
    ("bleu", "BLEU", 1),
    ("chrf", "chrF", 1),
    ("rouge_l", "ROUGE-L", 3),
)
SCORES = (
    ("nll", "nll", 3),
    *TASK_SCORES,
    ("teacher_agreement", "agreement", 2),
    ("calibration_error", "ECE", 3),
)
HEADS = ("job", "size", *(name for _, name, _ in SCORES), "gap closed", "… of best", "seconds")


def records(rows: list[Row]) -> list[dict[str, Any]]:
    """What is known of each job: what is swept, results.json in dotted columns, comparisons."""
    given = varying(rows)
    found = []
    for index, row in enumerate(rows):
        flat = flatten({k: v for k, v in row.results.items() if v is not None})
        flat["overrides"] = shlex.join(row.results["overrides"])
        settings = row.settings | {key: values[index] for key, values in given.items()}
        found.append(
            {"job": row.name}
            | settings
            | flat
            | {
                "gap_closed": row.gap_closed,
                "gap_closed_best_baseline": row.gap_closed_best,
                "gain_over_baseline": row.gain,
                "gain_over_label_smoothing": row.gain_over_smoothing,
            }
        )
    return found


def write_csv(rows: list[Row], file: Path) -> None:
    table = records(rows)
    columns = list(dict.fromkeys(key for line in table for key in line))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(table)
    write_atomic(file, text.getvalue().encode())


def print_table(rows: list[Row]) -> None:
    table = Table(title="on the held-out test split", title_justify="left")
    heads, *lines = table_cells(rows)
    for name in heads:
        table.add_column(name, justify="left" if name == "job" else "right", overflow="fold")
    for cells in lines:
        table.add_row(*cells)
    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table)


def table_cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """The heads, a line for each teacher, then one for each job, over its seeds; the best first.

    Without the columns of scores that nobody has.
    """
    lines = [*_teacher_lines(rows)]
    for group in over_seeds(rows):
        name = f"{group.name} ({len(group.rows)} seeds)" if len(group.rows) > 1 else group.name
        students = [row.results["student"] for row in group.rows]
        gaps = [[r.gap_closed for r in group.rows], [r.gap_closed_best for r in group.rows]]
        lines.append(_cells(name, students, gaps, seconds_of(group.rows)))
    for row in rows:
        if row.why and row.nll is None:
            lines.append((row.name, row.results["status"], *[""] * (len(HEADS) - 2)))
    told = [any(line[i] for line in lines) for i in range(len(HEADS))]
    task = {name for _, name, _ in TASK_SCORES}
    kept = [i for i, name in enumerate(HEADS) if told[i] or name not in task]
    return [tuple(line[i] for i in kept) for line in [HEADS, *lines]]


def teachers(rows: list[Row]) -> list[tuple[dict[str, Any], float]]:
    """The teachers of these jobs, the best first, each with the seconds that it took here."""
    found: dict[float, tuple[dict[str, Any], float]] = {}
    for row in rows:
        if teacher := row.results.get("teacher"):
            known = found.get(teacher["nll"], (teacher, 0.0))[1]
            found[teacher["nll"]] = (teacher, max(known, row.cost("teacher_seconds")))
    return [found[nll] for nll in sorted(found)]


def _teacher_lines(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for found, seconds in teachers(rows):
        yield _cells("teacher", [found], [[], []], f"{seconds:.0f}" if seconds else "reused")


def _cells(
    name: str, models: list[dict[str, Any]], gaps: list[list[float | None]], seconds: str
) -> tuple[str, ...]:
    def over(key: str, digits: int) -> str:
        return number([model.get(key) for model in models], digits)

    shares = [[100 * share for share in gap if share is not None] for gap in gaps]
    return (
        name,
        millions(models[0]["parameters"]),
        *(over(key, digits) for key, _, digits in SCORES),
        *(number(share, 0, " %") for share in shares),
        seconds,
    )


def seconds_of(rows: list[Row]) -> str:
    """Of training a student; those that took over another's results were not trained."""
    trained = [row.cost("student_seconds") for row in rows if not row.took_over]
    return number(trained, 0) if trained else "reused"


def millions(parameters: float) -> str:
    """With as many digits as tell small models apart."""
    count = parameters / 1e6
    if count >= 1000:
        return f"{count / 1000:.2f} G"
    return f"{count:,.2f} M" if count >= 0.1 else f"{count:.2g} M"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def number(values: list[Any], digits: int, unit: str = "") -> str:
    """The mean, with the standard deviation where it shows; empty where nothing is known."""
    known = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not known:
        return ""
    text = f"{mean(known):,.{digits}f}"
    if len(known) > 1 and stdev(known) >= 0.5 * 10**-digits:
        text += f" ± {stdev(known):.{digits}f}"
    return text + unit


def short(name: str, keys: Iterable[str]) -> str:
    """`loss.alpha=1,student=xs` as `alpha=1, student=xs`, where no two keys end alike."""
    ends = Counter(key.rsplit(".", 1)[-1] for key in keys)

    def shortened(part: str) -> str:
        key, sign, value = part.removeprefix("experiment/").partition("=")
        end = key.rsplit(".", 1)[-1]
        return f"{end}{sign}{value}" if sign and ends[end] < 2 else part

    return ", ".join(map(shortened, name.split(",")))
