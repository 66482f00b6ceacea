"""A sweep as a table, as results.csv, and as one page that any browser shows, offline."""

import csv
import json
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from omegaconf import OmegaConf
from plotly.offline import get_plotlyjs
from rich.console import Console
from rich.table import Table

from lightning_distill.comparison import COLUMNS, Row, table_cells

CURVES = {
    "validation/nll": "validation nll (nats per token)",
    "train/loss": "training objective (differs by loss)",
}
GREY = "#888888"  # readable on white and on black

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 0 auto; padding: 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } .note { color: #888; margin-top: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th, table:not(.samples) td + td { white-space: nowrap; } td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
.samples th, .samples td { text-align: left; vertical-align: top; }
.samples td:first-child { white-space: nowrap; color: #888; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; } pre, code { font-size: 14px; }
.text { white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: 14px; }
summary { cursor: pointer; padding: .3rem 0; }
"""


def write_report(rows: list[Row], file: Path) -> None:
    name = escape(file.resolve().parent.name)
    done = sum(row.nll is not None for row in rows)
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="note">{done} of {len(rows)} jobs finished; measured on the held-out test '
        "split, nll in nats per token. Gap closed: (baseline − student) / (baseline − teacher) in "
        "nll, over the same training without a teacher, and over the best of them.</p>",
        _table(rows),
        "<h2>Perplexity against size</h2>",
        _figure(_sizes(rows), "parameters", "perplexity", log_x=True),
    ]
    for column, title in CURVES.items():
        parts += [
            f"<h2>{escape(title.capitalize())}</h2>",
            _figure(_curves(rows, column), "step", title),
        ]
    parts += ["<h2>Samples</h2>", _samples(rows), "<h2>Settings</h2>", *map(_settings, rows)]
    file.write_text(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><title>{name}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>",
        encoding="utf-8",
    )


def write_csv(rows: list[Row], file: Path) -> None:
    """A row a job: its settings and results.json, flattened to dotted columns."""
    table = []
    for row in rows:
        loss = {k: v for k, v in _flat(row.cfg["loss"], "loss.").items() if "_target_" not in k}
        flat = {"job": row.name} | _flat({k: v for k, v in row.results.items() if v is not None})
        flat["overrides"] = " ".join(row.results["overrides"])
        gaps = {"gap_closed": row.gap_closed, "gap_closed_best_baseline": row.gap_closed_best}
        table.append(flat | loss | gaps)
    columns = list(dict.fromkeys(key for line in table for key in line))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(table)


def print_table(rows: list[Row]) -> None:
    table = Table(title="on the held-out test split", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "job" else "right", overflow="fold")
    for cells in table_cells(rows):
        table.add_row(*cells)
    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table)


def _table(rows: list[Row]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in table_cells(rows)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _sizes(rows: list[Row]) -> list[Any]:
    """One cloud for the teachers, one for the baselines, one for the distilled students."""
    points: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in rows:
        if row.nll is not None:
            kind = "baseline" if row.is_baseline else "distilled"
            points.setdefault(kind, []).append((row.name, row.results["student"]))
        if row.results.get("teacher"):
            teachers = points.setdefault("teacher", [])
            if row.results["teacher"] not in [found for _, found in teachers]:
                teachers.append(("teacher", row.results["teacher"]))
    return [
        go.Scatter(
            x=[found["parameters"] for _, found in kind_points],
            y=[found["perplexity"] for _, found in kind_points],
            text=[escape(name) for name, _ in kind_points],
            name=kind,
            mode="markers",
            marker={"size": 12},
            hovertemplate="%{text}<br>%{x:,} parameters<br>perplexity %{y:.1f}<extra></extra>",
        )
        for kind, kind_points in sorted(points.items())
    ]


def _curves(rows: list[Row], column: str) -> list[Any]:
    traces = []
    for row in rows:
        points = [(p["step"], p[column]) for p in row.curves if p.get(column)]
        if points:
            x, y = zip(*((int(step) + 1, float(value)) for step, value in points), strict=True)
            traces.append(go.Scatter(x=x, y=y, name=escape(row.name), mode="lines+markers"))
    return traces


def _figure(traces: list[Any], x: str, y: str, log_x: bool = False) -> str:
    if not traces:
        return "<p>No data.</p>"
    axis = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
    figure = go.Figure(traces)
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font_color=GREY,
        height=420,
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        legend={"orientation": "h", "y": -0.2},
        xaxis=axis | {"title": {"text": x}, "type": "log" if log_x else "linear"},
        yaxis=axis | {"title": {"text": y}},
    )
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return html


def _samples(rows: list[Row]) -> str:
    """For each prompt how the teacher and every student go on."""
    by_prompt: dict[str, dict[str, str]] = {}
    for row in rows:
        file = row.folder / "samples.json"
        for sample in json.loads(file.read_text()) if file.exists() else []:
            texts = by_prompt.setdefault(sample["prompt"], {})
            if "teacher" in sample:
                texts.setdefault("teacher", sample["teacher"])
            texts[row.name] = sample["student"]
    parts = []
    for prompt, texts in by_prompt.items():
        lines = "".join(
            f'<tr><td>{escape(who)}</td><td class="text">{escape(text)}</td></tr>'
            for who, text in texts.items()
        )
        parts.append(
            f'<details open><summary class="text">{escape(prompt)} …</summary>'
            f'<div class="wide"><table class="samples">{lines}</table></div></details>'
        )
    return "".join(parts) or "<p>No data.</p>"


def _settings(row: Row) -> str:
    command = "lightning-distill " + " ".join(row.results["overrides"])
    state = "" if row.nll is not None else f" ({row.results['status']})"
    why = f"<p>{escape(row.results['error'])}</p>" if "error" in row.results else ""
    return (
        f"<details><summary>{escape(row.name)}{escape(state)}</summary>{why}"
        f"<pre>{escape(command)}</pre><pre>{escape(OmegaConf.to_yaml(row.cfg))}</pre></details>"
    )


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
