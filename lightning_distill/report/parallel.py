"""Parallel coordinates: each job a line through its settings and its scores."""

import math
from html import escape
from typing import Any

from lightning_distill.report.figures import Figure, make_figure
from lightning_distill.report.formatting import short_name
from lightning_distill.sweeps.comparison import measure_of
from lightning_distill.sweeps.records import JobRecord

MIN_KEYS = 3  # for fewer, the other figures show more
BEST = 0.25  # share of the jobs that are drawn in color
BEST_LINE = {"color": "var(--accent)", "width": 1.8}
OTHER_LINE = {"color": "var(--muted)", "width": 0.6}


def parallel_coordinates(jobs: list[JobRecord]) -> Figure | None:
    """None where fewer than three keys vary besides the seed."""
    scored = [job for job in jobs if job.nll is not None]
    keys = [key for key in (jobs[0].swept if jobs else {}) if key != "seed"]
    if len(keys) < MIN_KEYS or len(scored) < 2:
        return None
    metric = measure_of(scored)
    scored.sort(key=lambda job: -(job.score(metric) or math.inf))  # the best are drawn last, on top
    axes = [_axis_of_key(scored, key) for key in keys] + [_axis_of_scores(scored, metric)]
    names = [short_name(f"{key}=", keys).rstrip("=") for key in keys] + [metric.replace("_", " ")]
    best = len(scored) - max(1, round(BEST * len(scored)))  # index of the first of them
    traces = [
        _trace(job, [heights[number] for heights, _ in axes], metric, number >= best)
        for number, job in enumerate(scored)
    ]
    labels = [
        _label(number, height, text)
        for number, (_, ticks) in enumerate(axes)
        for height, text in ticks
    ]
    xaxis = {
        "tickvals": list(range(len(axes))),
        "ticktext": [escape(name) for name in names],
        "range": [-0.3, len(axes) - 0.5],
        "side": "top",
    }
    yaxis = {"showticklabels": False, "showgrid": False, "range": [-0.06, 1.06]}
    margin = {"l": 16, "r": 16, "t": 48, "b": 16}
    return make_figure(
        traces, "", "", 420, xaxis=xaxis, yaxis=yaxis, annotations=labels, margin=margin
    )


def _trace(job: JobRecord, heights: list[float], metric: str, is_best: bool) -> Figure:
    label = metric.replace("_", " ")
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(range(len(heights))),
        "y": heights,
        "line": BEST_LINE if is_best else OTHER_LINE,
        "marker": {"size": 4},
        "name": escape(short_name(job.name, job.swept)),
        "hovertemplate": f"%{{fullData.name}}<br>{label} {job.score(metric):.4f}<extra></extra>",
        "showlegend": False,
    }


def _axis_of_key(jobs: list[JobRecord], key: str) -> tuple[list[float], list[tuple[float, str]]]:
    """The height of each job, from 0 to 1, and the values at their heights, evenly spaced."""
    values = sorted({job.swept[key] for job in jobs}, key=_order)
    step = 1 / max(1, len(values) - 1)
    heights = {value: number * step for number, value in enumerate(values)}
    return [heights[job.swept[key]] for job in jobs], [(h, v) for v, h in heights.items()]


def _axis_of_scores(
    jobs: list[JobRecord], metric: str
) -> tuple[list[float], list[tuple[float, str]]]:
    """Like `_axis_of_key`, linear, with the lowest and the highest score."""
    scores = [job.score(metric) or 0.0 for job in jobs]
    low, high = min(scores), max(scores)
    heights = [(score - low) / ((high - low) or 1) for score in scores]
    return heights, [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")][: 1 + (high > low)]


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by size, before other values."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def _label(axis: int, height: float, text: str) -> dict[str, Any]:
    place = {"x": axis, "y": height, "xanchor": "left", "xshift": 6, "showarrow": False}
    return place | {"text": escape(text), "font": {"size": 11}, "bgcolor": "var(--page)"}
