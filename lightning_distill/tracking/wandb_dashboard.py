"""`stage=dashboard`: a W&B workspace and report of a sweep, with the panels of report.html.

Charts select runs by W&B's group, so that later jobs of the sweep appear in them. Comparisons
between jobs, such as the gap closed, are in a table that is logged by a small run of its own.
"""

import unicodedata
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_distill.errors import ConfigError
from lightning_distill.report.tables import table_cells
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.records import JobRecord, job_folders, varying_settings
from lightning_distill.tracking import wandb_environment, wandb_run
from lightning_distill.tracking.wandb_naming import group_name

STEP = "trainer/global_step"
RESULTS = "results"  # name of the table and of its run
PERPLEXITY, SIZE = "student.perplexity", "student.parameters"
TARGET = "validation/nll"

CURVES = {
    TARGET: "validation nll (nats per token)",
    "train/loss": "training objective (differs by loss)",
    "train/kl": "KL(teacher ‖ student) at temperature 1",
    "train/gradient_norm": "norm of the gradient",
    "train/hard_gradient_norm": "norm of the hard target's gradient",
    "train/soft_gradient_norm": "norm of the teacher's gradient",
    "train/tokens_per_second": "tokens per second",
}
MAX_RUNS = 100  # lines of a chart
MAX_SETTINGS = 6  # axes of the parallel coordinates, besides nll


def save_dashboard(
    make_init: Callable[[], Callable[..., Any]],
    sweep: str,
    outputs: Path,
    project: str,
    entity: str | None,
) -> None:
    """Save a workspace and a report of the sweep (a folder or a group) of `dashboard.sweep`.

    make_init: as `wandb_run.start` takes it. entity: None is the default entity of the W&B key.
    Raises ConfigError if there is no such sweep, package, key or server.
    """
    folder, group = _find_sweep(sweep, outputs)
    if find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "stage=dashboard needs wandb-workspaces: pip install 'lightning_distill[dashboard]'."
        )
    if not wandb_environment.has_key():
        raise ConfigError("stage=dashboard needs a W&B key: `wandb login`, or set WANDB_API_KEY.")
    wandb_environment.check_server()
    import wandb

    jobs = compare_jobs(folder) if folder else []
    try:
        entity = str(entity or wandb.Api(timeout=30).default_entity)
        if folder:
            log_results(make_init, folder, group, jobs)
        workspace(entity, project, group, jobs).save()
        report(entity, project, group, jobs).save()
    except Exception as error:  # W&B raises many types: for a key, a server, a project of others
        first_line = next(iter(str(error).splitlines()), repr(error))
        raise ConfigError(f"W&B rejected the dashboard of {group}: {first_line}") from error


def _find_sweep(sweep: str, outputs: Path) -> tuple[Path | None, str]:
    """The folder, None if it is not on this machine, and the group that `dashboard.sweep` names."""
    for folder in (Path(sweep), outputs / "sweeps" / sweep):
        if folder.is_dir():
            if not job_folders(folder):
                raise ConfigError(f"dashboard.sweep={folder} has no jobs.")
            return folder, group_name(folder.resolve().name)
    if "/" in sweep:
        raise ConfigError(f"dashboard.sweep={sweep} is not a folder.")
    return None, group_name(sweep)


def log_results(
    make_init: Callable[[], Callable[..., Any]], folder: Path, group: str, jobs: list[JobRecord]
) -> None:
    """Log the sweep's jobs as a table, in one run that later calls resume."""
    import wandb

    described = {"job_type": RESULTS, "name": RESULTS, "group": group, "dir": str(folder)}
    run = wandb_run.start(make_init, described, folder / "wandb" / "results_id")
    rows = [_table_row(job) for job in jobs if job.nll is not None]
    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    data = [[row.get(column) for column in columns] for row in rows]
    run.log({RESULTS: wandb.Table(columns=columns, data=data)})
    run.finish()


def _table_row(job: JobRecord) -> dict[str, Any]:
    loss, cost = job.config["loss"], job.results["cost"]
    return {
        "job": job.name,
        **job.results["student"],
        "gap_closed": job.gap_closed,
        "gap_closed_best_baseline": job.gap_closed_best_baseline,
        "baseline": job.is_baseline,
        # Text, as either may be a schedule.
        "temperature": str(loss["temperature"]),
        "alpha": str(loss["alpha"]),
        "seed": job.results["seed"],
        "seconds": cost["student_seconds"],
    }


def workspace(entity: str, project: str, group: str, jobs: list[JobRecord]) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in sections(jobs).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_group_filter(group),
            order=[ws.Ordering(ws.Summary("student.nll"), ascending=True)],
            pinned_columns=["run:displayName", "summary:student.nll", f"summary:{PERPLEXITY}"],
        ),
    )


def report(entity: str, project: str, group: str, jobs: list[JobRecord]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P("Measured on the held-out test split, nll in nats per token.")]
    if jobs:
        blocks.append(wr.MarkdownBlock(text=_markdown(jobs)))
    for title, panels in sections(jobs).items():
        runs = wr.Runset(name=group, filters=_group_filter(group))
        blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(project=project, entity=entity, title=group, blocks=blocks, width="fluid")


def sections(jobs: list[JobRecord]) -> dict[str, list[Any]]:
    """New panels by section title; each panel object can be used on one page only.

    Without jobs, where only the group is known, panels that compare jobs are left out.
    """
    import wandb_workspaces.reports.v2 as wr

    panels = {
        "Results": _result_panels(jobs),
        "Which setting matters": _setting_panels(jobs),
        "Curves": [_curve_panel(metric, title) for metric, title in CURVES.items()],
        "Samples": [wr.WeavePanelSummaryTable(table_name="samples")],
    }
    for section in panels.values():
        for i, panel in enumerate(section):  # two side by side, on a grid 24 wide
            panel.layout = wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
    return panels


def _result_panels(jobs: list[JobRecord]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    colors = [wr.GradientPoint(color=c, offset=o) for c, o in (("#4c9f70", 0), ("#d1495b", 100))]
    panels: list[Any] = [
        wr.ScatterPlot(
            title="perplexity against parameters",
            x=wr.SummaryMetric(SIZE),
            y=wr.SummaryMetric(PERPLEXITY),
            log_x=True,
        ),
        wr.ScatterPlot(
            title="temperature × alpha, colored by perplexity",
            x=wr.Config("loss.temperature"),
            y=wr.Config("loss.alpha"),
            z=wr.SummaryMetric(PERPLEXITY),
            gradient=colors,
        ),
    ]
    if jobs:
        gaps = wr.CustomChart(
            query={"summaryTable": {"tableKey": RESULTS}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "job", "value": "gap_closed"},
            chart_strings={"title": "gap closed"},
        )
        panels += [gaps, wr.WeavePanelSummaryTable(table_name=RESULTS)]
    return panels


def _setting_panels(jobs: list[JobRecord]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    axes: list[Any] = [*map(wr.Config, _swept_keys(jobs)), wr.SummaryMetric("student.nll")]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    return [
        wr.ParameterImportancePlot(with_respect_to=TARGET),
        wr.ParallelCoordinatesPlot(columns=columns, title="settings and nll"),
    ]


def _curve_panel(metric: str, title: str) -> Any:
    """One line per setting: the mean over its seeds, with their standard deviation."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=STEP,
        y=[metric],
        groupby=wr.Config("job.name"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=MAX_RUNS,
    )


def _swept_keys(jobs: list[JobRecord]) -> list[str]:
    """The settings that differ between jobs; those of the loss if there are no jobs."""
    if not jobs:
        return ["loss.temperature", "loss.alpha"]
    varying = varying_settings([job.config for job in jobs])
    kept = [k for k in varying if k.split(".")[0] != "seed" and not k.endswith("_")]
    return kept[:MAX_SETTINGS]


def _group_filter(group: str) -> str:
    """A filter of runs. Escaped, as wandb-workspaces doubles every `=`, even in quotes."""
    quoted = "".join(c if c.isalnum() or c in " ._,-" else f"\\U{ord(c):08x}" for c in group)
    return f"Metric('Group') == '{quoted}'"


def _title(group: str) -> str:
    """The name of a view, in which W&B refuses symbols such as `=`."""
    return "".join(":" if unicodedata.category(c)[0] == "S" else c for c in group)


def _markdown(jobs: list[JobRecord]) -> str:
    headings, *cells = table_cells(jobs)
    lines = [headings, ("---",) * len(headings), *cells]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
