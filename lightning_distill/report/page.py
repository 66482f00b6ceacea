"""report.html: one self-contained page, the headline first, then the details."""

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lightning_distill.report import figures, heatmaps
from lightning_distill.report.about import about
from lightning_distill.report.calibration import reliability
from lightning_distill.report.curves import AXES, TITLES, curves
from lightning_distill.report.formatting import jobs_text, millions, short_name
from lightning_distill.report.headline import headline, seeds_table, unfinished
from lightning_distill.report.jobs_table import glossary, jobs_table
from lightning_distill.report.pairs import pairs
from lightning_distill.report.parallel import parallel_coordinates
from lightning_distill.report.resolved import resolved
from lightning_distill.report.sections import (
    commands,
    cost,
    differences,
    samples,
    variance_bars,
)
from lightning_distill.report.tables import cut_short_note
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.multirun import jobs_not_started, read_sweep_command
from lightning_distill.sweeps.records import JobRecord

# The sections in their order; each is a template `sections/<id>.html.jinja`.
SECTIONS = {
    "jobs": "All jobs",
    "seeds": "Over seeds",
    "gaps": "Gap closed",
    "against": "Against training without a teacher",
    "influence": "Which setting matters most",
    "parallel": "Settings and scores",
    "maps": "Temperature × alpha",
    "sizes": "Quality against size",
    "curves": "Loss curves",
    "calibration": "Calibration",
    "cost": "Cost",
    "pairs": "Two jobs side by side",
    "samples": "Samples",
    "differences": "Where student and teacher differ",
    "commands": "Commands and settings",
    "glossary": "Glossary",
}
FULL_KL = 1  # nats at which a token has the full color


def write_report(jobs: list[JobRecord], file: Path) -> None:
    command, requested = read_sweep_command(file.parent)
    not_started = jobs_not_started(jobs, requested)
    settings = [resolved(job) for job in jobs]
    contents = _contents(jobs, settings, command)
    package = files("lightning_distill.report")
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=file.resolve().parent.name,
            about=about(jobs, settings),
            finished=sum(not job.failure_reason for job in jobs),
            total=len(jobs) + len(not_started),
            headline=headline(jobs),
            cut_short=cut_short_note(jobs),
            unfinished=unfinished(jobs, not_started),
            sections=[(key, SECTIONS[key], shown) for key, shown in contents.items() if shown],
            style=Markup((package / "style.css").read_text(encoding="utf-8")),
            script=Markup((package / "script.js").read_text(encoding="utf-8")),
            plotly=Markup(get_plotlyjs()),
        )
    )
    write_atomic(file, page.encode())


def _contents(
    jobs: list[JobRecord], settings: list[dict[str, Any]], command: list[str]
) -> dict[str, Any]:
    """What each section shows; empty where it has nothing to show."""
    table = jobs_table(jobs)
    return {
        "jobs": table,
        "seeds": seeds_table(jobs),
        "gaps": _gaps(jobs),
        "against": _against(jobs),
        "influence": variance_bars(jobs),
        "parallel": parallel_coordinates(jobs),
        "maps": _maps(jobs),
        "sizes": figures.sizes(jobs),
        "curves": _curves(jobs),
        "calibration": reliability(jobs),
        "cost": cost(jobs),
        "pairs": pairs(jobs, settings, table),
        "samples": samples(jobs),
        "differences": differences(jobs),
        "commands": commands(jobs, command),
        "glossary": glossary(table),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lightning_distill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure_json": as_json, "jobs": jobs_text, "millions": millions}
    environment.filters |= {"token_text": token_text, "zip": zip}
    environment.globals["full_kl"] = FULL_KL
    environment.filters["short"] = lambda job: short_name(job.name, job.swept)
    return environment


def _gaps(jobs: list[JobRecord]) -> dict[str, Any] | None:
    if (figure := figures.gaps(jobs)) is None:
        return None
    scored = [job.name_without_seed for job in jobs if job.nll is not None]
    return {"figure": figure, "has_intervals": len(set(scored)) < len(scored)}


def _against(jobs: list[JobRecord]) -> dict[str, Any] | None:
    if (figure := figures.against(jobs)) is None:
        return None
    smoothed = any(job.gain_over_label_smoothing is not None for job in jobs)
    return {"figure": figure, "has_label_smoothing": smoothed}


def _maps(jobs: list[JobRecord]) -> dict[str, Any] | None:
    maps = heatmaps.heat_maps(jobs)
    if not maps:
        return None
    axes = (heatmaps.TEMPERATURE, heatmaps.ALPHA)
    shown = ("student", "student.hidden_size", "student.num_hidden_layers", "seed", *axes)
    return {"maps": maps, "averaged_keys": [key for key in jobs[0].swept if key not in shown]}


def _curves(jobs: list[JobRecord]) -> dict[str, Any] | None:
    drawn = [
        (title.capitalize(), figure)
        for column, title in TITLES.items()
        if (figure := curves(jobs, column))
    ]
    without = [job.name for job in jobs if not job.curves and job.results["status"] != "not run"]
    if not drawn and not without:
        return None
    axes = [axis for axis in AXES if all(axis in one["layout"]["meta"]["axes"] for _, one in drawn)]
    return {
        "figures": drawn,
        "without_curves": without,
        "axes": axes,
        "color_keys": list(jobs[0].swept),
    }


def token_text(text: str) -> str:
    """White space made visible, at the ends and where a line breaks."""
    body = text.strip(" ")
    left, right = (len(text) - len(one(" ")) for one in (text.lstrip, text.rstrip))
    if not body:
        left, right = len(text), 0
    return "␣" * left + body.replace("\n", "↵").replace("\t", "⇥") + "␣" * right


def as_json(node: Any) -> Markup:
    """JSON for a script element; NaN and Inf, which JSON lacks, become null."""
    return htmlsafe_json_dumps(_finite(node), allow_nan=False, separators=(",", ":"))


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
