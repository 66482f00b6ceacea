"""The reliability diagram: accuracy against confidence (Guo et al. 2017, figure 1)."""

from html import escape
from typing import Any

from lightning_distill.report.figures import COLORS, Figure, make_figure
from lightning_distill.report.formatting import short_name
from lightning_distill.sweeps.comparison import ranked_jobs
from lightning_distill.sweeps.records import JobRecord

LEAST, MOST = 5, 18  # diameter of a point, in pixels
RULER = {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1}


def reliability(jobs: list[JobRecord]) -> Figure | None:
    """The teacher, the best student and the best baseline; a point's area is its bin's share."""
    ranked = ranked_jobs(jobs)
    measured = [job for job in ranked if job.predictions.get("reliability")]
    distilled = [job for job in measured if not job.is_baseline][:1]
    baselines = [job for job in measured if job.is_baseline][:1]
    traces = []
    for job in [*distilled, *baselines]:
        name = short_name(job.name, job.swept)
        bins = job.predictions["reliability"].get("student") or []
        traces.append(_trace(f"{job.method}: {name}", job.method, bins))
    for job in measured:
        if bins := job.predictions["reliability"].get("teacher"):
            traces.append(_trace("teacher", "teacher", bins))
            break
    ruler = RULER | {"line": {"color": "var(--line)", "width": 1.5, "dash": "dot"}}
    axis = {"range": [-0.03, 1.03]}
    return make_figure(
        traces, "confidence", "accuracy", 460, xaxis=axis, yaxis=axis, shapes=[ruler]
    )


def _trace(name: str, method: str, bins: list[dict[str, float]]) -> dict[str, Any]:
    total = sum(one["count"] for one in bins) or 1
    shares = [one["count"] / total for one in bins]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(name),
        "x": [one["confidence"] for one in bins],
        "y": [one["accuracy"] for one in bins],
        "text": [f"{100 * share:.1f} %" for share in shares],
        "line": {"color": COLORS[method], "width": 1.5},
        "marker": {
            "color": COLORS[method],
            "opacity": 1,
            "size": [LEAST + (MOST - LEAST) * share**0.5 for share in shares],
        },
        "hovertemplate": "%{fullData.name}<br>confidence %{x:.3f}, accuracy %{y:.3f}<br>"
        "%{text} of the predictions<extra></extra>",
    }
