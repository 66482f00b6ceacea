"""Loss curves against steps, tokens or seconds, with lines for the teacher and the baseline."""

import math
from html import escape
from typing import Any

from lightning_distill.report.figures import LINE_COLORS, Figure, make_figure
from lightning_distill.report.formatting import short_name
from lightning_distill.report.tables import teachers
from lightning_distill.sweeps.records import JobRecord

VALIDATION, OBJECTIVE = "validation/nll", "train/loss"
TITLES = {
    VALIDATION: "validation nll (nats)",
    OBJECTIVE: "training objective (differs by loss)",
}
AXES = {"step": "step", "tokens": "train/tokens", "seconds": "train/seconds"}
DASHES = ("solid", "dot", "dash", "dashdot")
MAX_MARKERS = 40  # points of a curve up to which each is marked
MAX_TEACHERS = 4  # that get a line


def curves(jobs: list[JobRecord], column: str) -> Figure | None:
    """A line for each job, a color for each setting.

    The page's script redraws it against another axis, or with the colors of one swept key: each
    trace has `meta.x`, its values of each axis, and `meta.settings`.
    """
    settings = list(dict.fromkeys(job.name_without_seed for job in jobs))
    traces: list[Figure] = []
    in_legend: set[str] = set()
    for job in jobs:
        axes, y = _points(job, column)
        if y:
            setting = job.name_without_seed
            trace = _trace(job, axes, y, settings.index(setting))
            traces.append(trace | {"showlegend": setting not in in_legend})
            in_legend.add(setting)
    shared = [axis for axis in AXES if all(trace["meta"]["x"].get(axis) for trace in traces)]
    legend = {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "font": {"size": 11}}
    lines = _reference_lines(jobs) if column == VALIDATION else {}
    layout = {"legend": legend, "meta": {"axes": shared}} | lines
    return make_figure(traces, "step", TITLES[column], 460 + 12 * len(in_legend), **layout)


def _trace(job: JobRecord, axes: dict[str, list[float]], y: list[float], index: int) -> Figure:
    return {
        "type": "scatter",
        "x": axes["step"],
        "y": y,
        "name": escape(short_name(job.name_without_seed, job.swept)),
        "text": escape(short_name(job.name, job.swept)),
        "legendgroup": str(index),
        "mode": "lines+markers" if len(y) < MAX_MARKERS else "lines",
        "line": {
            "color": LINE_COLORS[index % len(LINE_COLORS)],
            "dash": DASHES[index // len(LINE_COLORS) % len(DASHES)],
            "width": 1.5,
        },
        "marker": {"size": 4},
        "hovertemplate": "%{text}<br>%{x}: %{y:.4f}<extra></extra>",
        "meta": {"x": axes, "settings": {k: escape(str(v)) for k, v in job.swept.items()}},
    }


def _points(job: JobRecord, column: str) -> tuple[dict[str, list[float]], list[float]]:
    """The values of each axis, and of the column, at each line that has the column.

    Validations are logged on lines of their own: their tokens and seconds are those of the training
    line before. A running job may be writing its last line.
    """
    axes: dict[str, list[float]] = {axis: [] for axis in AXES}
    y: list[float] = []
    last = dict.fromkeys(AXES, math.nan)
    for line in job.curves:
        try:
            for axis, key in AXES.items():
                last[axis] = float(line[key]) if line.get(key) else last[axis]
            value = float(line.get(column) or "nan")
        except ValueError:
            continue
        if math.isfinite(value):
            y.append(value)
            for axis, values in axes.items():
                values.append(last[axis] + (axis == "step"))  # those are counted from 0
    return {axis: x for axis, x in axes.items() if not any(map(math.isnan, x))}, y


def _reference_lines(jobs: list[JobRecord]) -> dict[str, Any]:
    """Horizontal lines: the teachers' nll on the test split, and where the best baseline ends."""
    lines = [
        (teacher["nll"], "teacher, test split", "var(--ink)")
        for teacher, _ in teachers(jobs)[:MAX_TEACHERS]
    ]
    ends = [_points(job, VALIDATION)[1][-1:] for job in jobs if job.method == "baseline"]
    if best := min(filter(None, ends), default=None):
        lines.append((best[0], "best baseline, at its end", "var(--muted)"))
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1}
    beside = {"xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
    return {
        "shapes": [
            across | {"y0": y, "y1": y, "line": {"color": color, "width": 1, "dash": "dash"}}
            for y, _, color in lines
        ],
        "annotations": [
            beside | {"y": y, "text": text, "font": {"size": 11, "color": color}}
            for y, text, color in lines
        ],
    }
