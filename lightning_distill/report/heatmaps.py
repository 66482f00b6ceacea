"""Temperature × alpha, where a sweep has both."""

import math
from statistics import mean

from lightning_distill.report.figures import Figure, figure
from lightning_distill.report.tables import millions
from lightning_distill.sweeps.records import Row

TEMPERATURE, ALPHA = "loss.temperature", "loss.alpha"


def heat_maps(rows: list[Row]) -> list[tuple[str, Figure]]:
    """nll at each temperature and alpha, one for each size of the student, and its name.

    None where not both are swept, or where they have schedules.
    """
    done = [row for row in rows if row.nll is not None and _is_grid_point(row)]
    found = []
    for size in sorted({row.score("parameters") or 0.0 for row in done}):
        here = [row for row in done if row.score("parameters") == size]
        temperatures, alphas = (
            sorted({row.settings[key] for row in here}, key=float) for key in (TEMPERATURE, ALPHA)
        )
        if len(temperatures) < 2 or len(alphas) < 2:
            continue
        cells = [
            [
                [r for r in here if (r.settings[ALPHA], r.settings[TEMPERATURE]) == (alpha, t)]
                for t in temperatures
            ]
            for alpha in alphas
        ]
        trace = {
            "type": "heatmap",
            "x": temperatures,
            "y": alphas,
            "z": [[mean(r.nll or 0 for r in cell) if cell else None for cell in c] for c in cells],
            "text": [[_gap_text(cell) for cell in c] for c in cells],
            "texttemplate": "%{z:.3f}",
            "hovertemplate": "T = %{x}, alpha = %{y}<br>nll %{z:.4f}%{text}<extra></extra>",
            "colorscale": [[0, "var(--accent)"], [1, "var(--faint)"]],
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
        }
        drawn = figure(
            [trace],
            "temperature",
            "alpha",
            130 + 48 * len(alphas),
            xaxis={"type": "category", "showgrid": False},
            yaxis={"type": "category", "showgrid": False},
        )
        choice = {row.settings.get("student", "") for row in here} - {"", "default"}
        name = ", ".join([*(f"student={c}" for c in sorted(choice)), millions(size)])
        if drawn:
            found.append((name, drawn))
    return found


def _is_grid_point(row: Row) -> bool:
    try:
        return all(math.isfinite(float(row.settings[key])) for key in (TEMPERATURE, ALPHA))
    except (KeyError, ValueError):
        return False


def _gap_text(rows: list[Row]) -> str:
    shares = [row.gap_closed for row in rows if row.gap_closed is not None]
    return f"<br>gap closed {100 * mean(shares):.0f} %" if shares else ""
