"""Heat maps of temperature × alpha, where a sweep varies both."""

import math
from statistics import mean

from lightning_distill.report.figures import Figure, make_figure
from lightning_distill.report.formatting import millions
from lightning_distill.sweeps.records import JobRecord

TEMPERATURE, ALPHA = "loss.temperature", "loss.alpha"


def heat_maps(jobs: list[JobRecord]) -> list[tuple[str, Figure]]:
    """For each student size a name and the nll at each temperature and alpha.

    Empty if not both are swept, or if they have schedules.
    """
    scored = [job for job in jobs if job.nll is not None and _is_grid_point(job)]
    maps = []
    for size in sorted({job.score("parameters") or 0.0 for job in scored}):
        same_size = [job for job in scored if job.score("parameters") == size]
        if figure := _heat_map(same_size):
            students = {job.swept.get("student", "") for job in same_size} - {"", "default"}
            names = [f"student={student}" for student in sorted(students)]
            maps.append((", ".join([*names, millions(size)]), figure))
    return maps


def _heat_map(jobs: list[JobRecord]) -> Figure | None:
    temperatures, alphas = (
        sorted({job.swept[key] for job in jobs}, key=float) for key in (TEMPERATURE, ALPHA)
    )
    if len(temperatures) < 2 or len(alphas) < 2:
        return None
    cells: dict[tuple[str, str], list[JobRecord]] = {}
    for job in jobs:
        cells.setdefault((job.swept[ALPHA], job.swept[TEMPERATURE]), []).append(job)
    grid = [
        [cells.get((alpha, temperature), []) for temperature in temperatures] for alpha in alphas
    ]
    trace = {
        "type": "heatmap",
        "x": temperatures,
        "y": alphas,
        "z": [[mean(j.nll or 0 for j in cell) if cell else None for cell in row] for row in grid],
        "text": [[_gap_text(cell) for cell in row] for row in grid],
        "texttemplate": "%{z:.3f}",
        "hovertemplate": "T = %{x}, alpha = %{y}<br>nll %{z:.4f}%{text}<extra></extra>",
        "colorscale": [[0, "var(--accent)"], [1, "var(--faint)"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    axis = {"type": "category", "showgrid": False}
    height = 130 + 48 * len(alphas)
    return make_figure([trace], "temperature", "alpha", height, xaxis=axis, yaxis=axis)


def _is_grid_point(job: JobRecord) -> bool:
    try:
        return all(math.isfinite(float(job.swept[key])) for key in (TEMPERATURE, ALPHA))
    except (KeyError, ValueError):
        return False


def _gap_text(jobs: list[JobRecord]) -> str:
    gaps = [job.gap_closed for job in jobs if job.gap_closed is not None]
    return f"<br>gap closed {100 * mean(gaps):.0f} %" if gaps else ""
