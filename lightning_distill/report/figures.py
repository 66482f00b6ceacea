"""The report's figures, as plotly's JSON.

Colours are names of the page's, `var(--accent)`, which its script fills in: they differ in light
and dark. Names of jobs are escaped, because plotly takes text for HTML.
"""

import math
from html import escape
from statistics import mean
from typing import Any

from lightning_distill.report.tables import short, teachers
from lightning_distill.sweeps.comparison import Group, over_seeds, pareto
from lightning_distill.sweeps.records import Row
from lightning_distill.sweeps.statistics import interval

Figure = dict[str, Any]

COLOURS = {
    "distilled": "var(--accent)",
    "baseline": "var(--muted)",
    "label smoothing": "var(--warm)",
    "teacher": "var(--ink)",
}
LINES = [f"var(--line-{n})" for n in range(1, 9)]  # the page has as many
DASHES = ("solid", "dot", "dash", "dashdot")


def figure(traces: list[Figure], x: str, y: str, height: int = 420, **layout: Any) -> Figure | None:
    """None where there is nothing to draw."""
    if not traces:
        return None
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False}
    base = {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 16, "b": 56},
        "hovermode": "closest",
        "hoverlabel": {"namelength": -1, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    }
    for name, title in (("xaxis", x), ("yaxis", y)):
        base[name] = axis | {"title": {"text": title, "standoff": 10}} | layout.pop(name, {})
    return {"data": traces, "layout": base | layout}


def sizes(rows: list[Row]) -> Figure | None:
    """Perplexity against parameters, means over seeds, and the students that none beats in both.

    nll where perplexity is not told, as of images.
    """
    groups = over_seeds(rows)
    front = pareto(groups)
    key = "perplexity" if all(group.scores("perplexity") for group in groups) else "nll"
    traces: list[Figure] = []
    if len(front) > 1:
        traces.append(
            {
                "type": "scatter",
                "name": "Pareto front",
                "x": [group.mean("parameters") for group in front],
                "y": [group.mean(key) for group in front],
                "mode": "lines",
                "line": {"color": "var(--accent)", "width": 1.5, "dash": "dot", "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    for kind in ("baseline", "label smoothing", "distilled"):
        points = [
            (group.mean("parameters"), group.mean(key), _label(group))
            for group in groups
            if group.kind == kind
        ]
        traces += _cloud(kind, points, key)
    found = [(t["parameters"], t[key], "teacher") for t, _ in teachers(rows)]
    traces += _cloud("teacher", found, key, symbol="diamond")
    ticks = [digit * 10**power for power in range(3, 13) for digit in (1, 2, 5)]
    names = [f"{tick / 1e6:g} M" for tick in ticks]
    axis = {"type": "log", "tickvals": ticks, "ticktext": names}
    return figure(traces, "parameters", key, xaxis=axis)


def _cloud(
    kind: str, points: list[tuple[float, float, str]], y_name: str, symbol: str = "circle"
) -> list[Figure]:
    if not points:
        return []
    x, y, text = zip(*points, strict=True)
    look = {"color": COLOURS[kind], "size": 11, "symbol": symbol, "opacity": 0.85}
    digits = ".1f" if y_name == "perplexity" else ".3f"
    hover = f"%{{text}}<br>%{{x:,}} parameters<br>{y_name} %{{y:{digits}}}<extra></extra>"
    return [
        {"type": "scatter", "name": kind, "x": x, "y": y, "text": text, "mode": "markers"}
        | {"marker": look | {"line": {"width": 1, "color": "var(--page)"}}, "hovertemplate": hover}
    ]


def gaps(rows: list[Row]) -> Figure | None:
    """Gap closed, with the interval of its mean where seeds repeat; the best on top."""
    measured = [group for group in over_seeds(rows) if group.shares()]
    groups = sorted(measured, key=lambda group: mean(group.shares()))
    if not groups:
        return None
    widths = [interval(group.shares()) for group in groups]
    texts = [f"{len(g.shares())} seed{'s' * (len(g.shares()) > 1)}" for g in groups]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * mean(group.shares()) for group in groups],
        "y": [_label(group) for group in groups],
        "text": texts,
        "error_x": {
            "type": "data",
            "array": [100 * width if width else 0 for width in widths],
            "color": "var(--accent)",
            "thickness": 1.5,
            "width": 5,
        },
        "marker": {"color": "var(--accent)", "size": 10},
        "hovertemplate": "%{y}<br>%{x:.1f} %<br>%{text}<extra></extra>",
    }
    return _lying([trace], len(groups), "gap closed (%)", rangemode="tozero")


def against(rows: list[Row]) -> Figure | None:
    """The nll of each distilled student beside that of its twins without a teacher."""
    groups = [g for g in over_seeds(rows) if g.kind == "distilled"][::-1]
    points: dict[str, list[tuple[float, str]]] = {}
    lines: list[tuple[float | None, str]] = []
    for group in groups:
        nll, label = group.mean("nll"), _label(group)
        gains = {
            "baseline": [row.gain for row in group.rows if row.gain is not None],
            "label smoothing": [
                row.gain_over_smoothing for row in group.rows if row.gain_over_smoothing is not None
            ],
            "distilled": [0.0],
        }
        if not gains["baseline"] and not gains["label smoothing"]:
            continue
        at = {kind: nll + mean(gain) for kind, gain in gains.items() if gain}
        for kind, value in at.items():
            points.setdefault(kind, []).append((value, label))
        lines += [(min(at.values()), label), (max(at.values()), label), (None, label)]
    if not points:
        return None
    x, y = zip(*lines, strict=True)
    line = {"color": "var(--line)", "width": 3}
    traces: list[Figure] = [
        {"type": "scatter", "x": x, "y": y, "mode": "lines", "line": line, "hoverinfo": "skip"}
        | {"showlegend": False}
    ]
    for kind in sorted(points, key=list(COLOURS).index):
        x, y = zip(*points[kind], strict=True)
        look = {"color": COLOURS[kind], "size": 10}
        hover = f"%{{y}}<br>{kind} %{{x:.3f}}<extra></extra>"
        traces.append(
            {"type": "scatter", "name": kind, "x": x, "y": y, "mode": "markers"}
            | {"marker": look, "hovertemplate": hover}
        )
    return _lying(traces, len(points["distilled"]), "nll (nats)")


def _lying(traces: list[Figure], lines: int, x: str, **axis: Any) -> Figure | None:
    """With a line a job, and its name on the left."""
    names = {"automargin": True, "ticksuffix": "  ", "type": "category"}
    return figure(traces, x, "", 130 + 26 * lines, xaxis=axis, yaxis=names)


def curves(rows: list[Row], column: str, title: str) -> Figure | None:
    """A line for each job, a colour for each setting."""
    labels = list(dict.fromkeys(row.label for row in rows))
    traces: list[Figure] = []
    named = set()
    for row in rows:
        points = _points(row, column)
        if not points:
            continue
        x, y = zip(*points, strict=True)
        index = labels.index(row.label)
        traces.append(
            {
                "type": "scatter",
                "x": x,
                "y": y,
                "name": escape(short(row.label, row.settings)),
                "text": escape(short(row.name, row.settings)),
                "legendgroup": str(index),
                "showlegend": row.label not in named,
                "mode": "lines+markers" if len(points) < 40 else "lines",
                "line": {
                    "color": LINES[index % len(LINES)],
                    "dash": DASHES[index // len(LINES) % len(DASHES)],
                    "width": 1.5,
                },
                "marker": {"size": 4},
                "hovertemplate": "%{text}<br>step %{x}: %{y:.4f}<extra></extra>",
            }
        )
        named.add(row.label)
    legend = {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "font": {"size": 11}}
    return figure(traces, "step", title, 460 + 12 * len(named), legend=legend)


def _points(row: Row, column: str) -> list[tuple[int, float]]:
    """Those that can be read: a job may be writing its last line right now."""
    found = []
    for point in row.curves:
        try:
            step, value = int(point["step"]) + 1, float(point.get(column) or "nan")
        except ValueError:
            continue
        if math.isfinite(value):
            found.append((step, value))
    return found


def _label(group: Group) -> str:
    return escape(short(group.name, group.rows[0].settings))
