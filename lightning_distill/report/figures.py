"""The report's figures, as plotly's JSON.

Colors are variables of the page's style, `var(--accent)`; its script resolves them, for light and
dark mode. Job names are escaped because plotly renders text as HTML.
"""

from html import escape
from statistics import mean
from typing import Any

from lightning_distill.report.headline import group_name
from lightning_distill.report.tables import teachers
from lightning_distill.sweeps.comparison import SeedGroup, group_by_setting, pareto_front
from lightning_distill.sweeps.records import JobRecord
from lightning_distill.sweeps.statistics import confidence_half_width

Figure = dict[str, Any]

COLORS = {
    "distilled": "var(--accent)",
    "baseline": "var(--muted)",
    "label smoothing": "var(--warm)",
    "teacher": "var(--ink)",
}
LINE_COLORS = [f"var(--line-{n})" for n in range(1, 9)]  # style.css defines as many


def make_figure(
    traces: list[Figure], x: str, y: str, height: int = 420, **layout: Any
) -> Figure | None:
    """A figure with axis titles `x` and `y`; None without traces."""
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


def sizes(jobs: list[JobRecord]) -> Figure | None:
    """Perplexity against parameters, means over seeds, with the Pareto front.

    nll instead of perplexity for tasks without one, such as images.
    """
    groups = group_by_setting(jobs)
    metric = "perplexity" if all(group.scores("perplexity") for group in groups) else "nll"
    traces: list[Figure] = []
    front = pareto_front(groups)
    if len(front) > 1:
        traces.append(
            {
                "type": "scatter",
                "name": "Pareto front",
                "x": [group.mean("parameters") for group in front],
                "y": [group.mean(metric) for group in front],
                "mode": "lines",
                "line": {"color": "var(--accent)", "width": 1.5, "dash": "dot", "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    for method in ("baseline", "label smoothing", "distilled"):
        points = [
            (group.mean("parameters"), group.mean(metric), _label(group))
            for group in groups
            if group.method == method
        ]
        traces += _model_points(method, points, metric)
    points = [(t["parameters"], t[metric], "teacher") for t, _ in teachers(jobs)]
    traces += _model_points("teacher", points, metric, symbol="diamond")
    ticks = [digit * 10**power for power in range(3, 13) for digit in (1, 2, 5)]
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{t / 1e6:g} M" for t in ticks]}
    return make_figure(traces, "parameters", metric, xaxis=axis)


def _model_points(
    name: str, points: list[tuple[float, float, str]], metric: str, symbol: str = "circle"
) -> list[Figure]:
    """points: parameters, score, label."""
    if not points:
        return []
    x, y, text = zip(*points, strict=True)
    digits = ".1f" if metric == "perplexity" else ".3f"
    return [
        {
            "type": "scatter",
            "name": name,
            "x": x,
            "y": y,
            "text": text,
            "mode": "markers",
            "marker": {
                "color": COLORS[name],
                "size": 11,
                "symbol": symbol,
                "line": {"width": 1, "color": "var(--page)"},
            },
            "hovertemplate": f"%{{text}}<br>%{{x:,}} parameters<br>{metric} %{{y:{digits}}}"
            "<extra></extra>",
        }
    ]


def gaps(jobs: list[JobRecord]) -> Figure | None:
    """Gap closed by setting, with confidence intervals over seeds; the best on top."""
    compared = [group for group in group_by_setting(jobs) if group.gaps_closed()]
    if not compared:
        return None
    groups = sorted(compared, key=lambda group: mean(group.gaps_closed()))
    counts = [len(group.gaps_closed()) for group in groups]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * mean(group.gaps_closed()) for group in groups],
        "y": [_label(group) for group in groups],
        "text": [f"{count} seed{'s' * (count > 1)}" for count in counts],
        "error_x": {
            "type": "data",
            "array": [100 * (confidence_half_width(g.gaps_closed()) or 0) for g in groups],
            "color": "var(--accent)",
            "thickness": 1.5,
            "width": 5,
        },
        "marker": {"color": "var(--accent)", "size": 10},
        "hovertemplate": "%{y}<br>%{x:.1f} %<br>%{text}<extra></extra>",
    }
    return _with_named_lines([trace], len(groups), "gap closed (%)", rangemode="tozero")


def against(jobs: list[JobRecord]) -> Figure | None:
    """The nll of each distilled student beside that of its baselines."""
    points: dict[str, list[tuple[float, str]]] = {}
    lines: list[tuple[float | None, str]] = []
    for group in reversed(group_by_setting(jobs)):
        scores = _baseline_scores(group)
        if group.method != "distilled" or not scores:
            continue
        label = _label(group)
        scores["distilled"] = group.mean("nll")
        for method, nll in scores.items():
            points.setdefault(method, []).append((nll, label))
        lines += [(min(scores.values()), label), (max(scores.values()), label), (None, label)]
    if not points:
        return None
    x, y = zip(*lines, strict=True)
    connection = {"mode": "lines", "line": {"color": "var(--line)", "width": 3}}
    hidden = {"hoverinfo": "skip", "showlegend": False}
    traces: list[Figure] = [{"type": "scatter", "x": x, "y": y} | connection | hidden]
    for method in sorted(points, key=list(COLORS).index):
        x, y = zip(*points[method], strict=True)
        traces.append(
            {
                "type": "scatter",
                "name": method,
                "x": x,
                "y": y,
                "mode": "markers",
                "marker": {"color": COLORS[method], "size": 10},
                "hovertemplate": f"%{{y}}<br>{method} %{{x:.3f}}<extra></extra>",
            }
        )
    return _with_named_lines(traces, len(points["distilled"]), "nll (nats)")


def _baseline_scores(group: SeedGroup) -> dict[str, float]:
    """The mean nll of the baselines that a group was compared with, by their method."""
    gains = {
        "baseline": [job.gain_over_baseline for job in group.jobs],
        "label smoothing": [job.gain_over_label_smoothing for job in group.jobs],
    }
    known = {method: [g for g in gain if g is not None] for method, gain in gains.items()}
    return {method: group.mean("nll") + mean(gain) for method, gain in known.items() if gain}


def _with_named_lines(traces: list[Figure], lines: int, x: str, **axis: Any) -> Figure | None:
    """A figure with one horizontal line per setting, and its name on the left."""
    names = {"automargin": True, "ticksuffix": "  ", "type": "category"}
    return make_figure(traces, x, "", 130 + 26 * lines, xaxis=axis, yaxis=names)


def _label(group: SeedGroup) -> str:
    return escape(group_name(group))
