"""One page that any browser shows, offline: the answer first, then what it rests on."""

import json
import math
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from lightning_distill.report import figures, heatmaps
from lightning_distill.report.headline import answer, over_seeds_table, unfinished
from lightning_distill.report.sections import commands, cost, influences, jobs_table, samples
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.records import Row, not_begun, planned

SECTIONS = {
    "jobs": "All jobs",
    "seeds": "Over seeds",
    "gaps": "Gap closed",
    "against": "Against training without a teacher",
    "influence": "Which setting matters most",
    "maps": "Temperature × alpha",
    "sizes": "Quality against size",
    "curves": "Loss curves",
    "cost": "Cost",
    "samples": "Samples",
    "commands": "Commands and settings",
}
CURVES = {
    "validation/nll": "validation nll (nats)",
    "train/loss": "training objective (differs by loss)",
}


def write_report(rows: list[Row], file: Path) -> None:
    name = file.resolve().parent.name
    command, jobs = planned(file.parent)
    absent = not_begun(rows, jobs)
    contents = {
        "jobs": jobs_table(rows),
        "seeds": over_seeds_table(rows),
        "gaps": _gaps(rows),
        "against": _against(rows),
        "influence": influences(rows),
        "maps": _maps(rows),
        "sizes": _drawn("sizes", figures.sizes(rows)),
        "curves": _curves(rows),
        "cost": cost(rows),
        "samples": samples(rows),
        "commands": commands(rows, command),
    }
    shown = {key: html for key, html in contents.items() if html}
    done = sum(not row.why for row in rows)
    of = f"{len(rows) + len(absent)} job{'s' * (len(rows) + len(absent) > 1)}"
    head = (
        f"<h1>{escape(name)}</h1><p class='note'>{done} of {of} finished. Measured on the "
        "held-out test split; nll in nats per token or example. The same numbers, unrounded, are "
        "in <a href='results.csv'>results.csv</a>.</p>"
    )
    links = "".join(f"<a href='#{key}'>{SECTIONS[key]}</a>" for key in shown)
    body = "".join(
        f"<section id='{key}'><h2>{SECTIONS[key]}</h2>{html}</section>"
        for key, html in shown.items()
    )
    own = files("lightning_distill.report")
    style, script = ((own / f).read_text(encoding="utf-8") for f in ("style.css", "script.js"))
    text = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><title>{escape(name)}</title><style>{style}</style>"
        f"</head><body><header>{head}</header><main>{answer(rows)}"
        f"<nav aria-label='sections'>{links}</nav>{unfinished(rows, absent)}{body}</main>"
        # Not run before a figure comes into view: its 5 MB would hold up all the rest.
        f"<script type='text/plain' id='plotly'>{get_plotlyjs()}</script>"
        f"<script>{script}</script></body></html>"
    )
    write_atomic(file, text.encode())


def _gaps(rows: list[Row]) -> str:
    repeated = any(row.gap_closed is not None for row in rows) and _repeats(rows)
    bars = " Bars: 95&nbsp;% confidence intervals of the mean over seeds (Student's t)."
    note = (
        "How much of the way from the nll of the same training without a teacher (alpha = 0, no "
        f"label smoothing, equal steps) to the teacher's.{bars if repeated else ''}"
    )
    return _drawn("gaps", figures.gaps(rows), note)


def _repeats(rows: list[Row]) -> bool:
    return len({row.label for row in rows if row.nll is not None}) < sum(
        row.nll is not None for row in rows
    )


def _against(rows: list[Row]) -> str:
    note = (
        "Each distilled student beside the same model trained on the same text for as many steps "
        "without a teacher: plainly, and with smoothed labels where the sweep has that. Means "
        "over seeds; further left is better."
    )
    drawn = _drawn("against", figures.against(rows), note)
    if drawn and not any(row.gain_over_smoothing is not None for row in rows):
        hint = "loss.alpha=0 loss.label_smoothing=0.1"
        drawn += f"<p class='note'>No job has smoothed labels; add <code>{hint}</code>.</p>"
    return drawn


def _maps(rows: list[Row]) -> str:
    maps = heatmaps.heat_maps(rows)
    if not maps:
        return ""
    axes = (heatmaps.TEMPERATURE, heatmaps.ALPHA)
    own = ("student", "student.hidden_size", "student.num_hidden_layers", "seed", *axes)
    others = [key for key in rows[0].settings if key not in own]
    over = f"over seeds and {', '.join(others)}" if others else "over seeds"
    note = (
        f"nll, means {escape(over)}; the stronger the colour, the better. At alpha = 0 the "
        "temperature is without effect."
    )
    parts = [
        f"<div><h3>{escape(name)}</h3>{_drawn(f'map-{n}', one)}</div>"
        for n, (name, one) in enumerate(maps)
    ]
    return f"<p class='note'>{note}</p><div class='maps'>{''.join(parts)}</div>"


def _curves(rows: list[Row]) -> str:
    parts = [
        f"<h3>{escape(title.capitalize())}</h3>{html}"
        for n, (column, title) in enumerate(CURVES.items())
        if (html := _drawn(f"curves-{n}", figures.curves(rows, column, title)))
    ]
    without = [row.name for row in rows if not row.curves and row.results["status"] != "not run"]
    if without:
        names = escape("; ".join(without))
        parts.append(f"<p class='note'>Without a readable metrics.csv: {names}.</p>")
    return "".join(parts)


def _drawn(name: str, figure: figures.Figure | None, note: str = "") -> str:
    """A figure's place, and what the script draws there when it comes into view."""
    if figure is None:
        return ""
    height = figure["layout"]["height"]
    said = f"<p class='note'>{note}</p>" if note else ""
    return (
        f"{said}<div class='wide'><div class='figure' data-figure='figure-{name}' "
        f"style='min-height:{height}px'></div></div>"
        f"<script type='application/json' id='figure-{name}'>{as_json(figure)}</script>"
    )


def as_json(node: Any) -> str:
    """For a script element, which any `</script>` inside would end."""
    text = json.dumps(_finite(node), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(node: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
