"""`make dashboard`: a W&B workspace and a W&B report of a sweep, with the panels of report.html.

Charts of what every run logs choose their runs by the group, so that later jobs of the sweep show
up by themselves. What only jobs side by side can tell, such as the gap closed, W&B has from a
table, which is a small run of its own.
"""

import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_distill.errors import ConfigError
from lightning_distill.report.tables import table_cells
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.job import Job
from lightning_distill.sweeps.records import JobRecord, varying_settings
from lightning_distill.tracking import wandb_run

STEP = "trainer/global_step"
RESULTS = "results"  # the table, and its run
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
MAX_RUNS = 100  # lines in a chart
MAX_SETTINGS = 6  # axes of the parallel coordinates, beside the result


def build(cfg: DictConfig, job: Job) -> None:
    """`stage=dashboard dashboard.sweep=<folder or group>`."""
    folder, group = _which(cfg)
    node = cfg.logger.get("wandb")
    if node is None:
        raise ConfigError("stage=dashboard needs logger=wandb, which says whose project it is.")
    if find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "stage=dashboard needs wandb-workspaces: pip install 'lightning_distill[dashboard]'."
        )
    if not wandb_run.has_key():
        raise ConfigError("stage=dashboard needs a W&B key: `wandb login`, or set WANDB_API_KEY.")
    wandb_run.check_server()
    import wandb

    rows = compare_jobs(folder) if folder else []
    try:
        entity = str(node.entity or wandb.Api(timeout=30).default_entity)
        if folder:
            log_results(node, folder, group, rows)
        workspace(entity, node.project, group, rows).save()
        report(entity, node.project, group, rows).save()
    except Exception as error:  # a key refused, a server away, a project of others: of many kinds
        first = next(iter(str(error).splitlines()), repr(error))
        raise ConfigError(f"W&B did not take the dashboard of {group}: {first}") from error


def _which(cfg: DictConfig) -> tuple[Path | None, str]:
    """The sweep's folder, if it is on this machine, and its group."""
    if cfg.dashboard.sweep in (None, ""):
        raise ConfigError("stage=dashboard needs dashboard.sweep=<a sweep's folder, or its group>.")
    name = str(cfg.dashboard.sweep)
    for folder in (Path(name), Path(cfg.paths.outputs) / "sweeps" / name):
        if folder.is_dir():
            if not compare_jobs(folder):
                raise ConfigError(f"dashboard.sweep={folder} holds no job with its results.")
            return folder, wandb_run.group_name(folder.resolve().name)
    if "/" in name:
        raise ConfigError(f"dashboard.sweep={name} is no folder.")
    return None, wandb_run.group_name(name)


def log_results(node: Any, folder: Path, group: str, rows: list[JobRecord]) -> None:
    """The sweep's jobs as a table, in a run of its own that goes on when it is called again."""
    import wandb

    told = {"job_type": RESULTS, "name": RESULTS, "group": group, "dir": str(folder)}
    run = wandb_run.start(node, told, folder / "wandb" / "results_id")
    lines = [_line(row) for row in rows if row.nll is not None]
    columns: list[Any] = list(dict.fromkeys(key for line in lines for key in line))
    data = [[line.get(column) for column in columns] for line in lines]
    run.log({RESULTS: wandb.Table(columns=columns, data=data)})
    run.finish()


def _line(row: JobRecord) -> dict[str, Any]:
    """A job in the table of results."""
    loss, cost = row.config["loss"], row.results["cost"]
    return {
        "job": row.name,
        **row.results["student"],
        "gap_closed": row.gap_closed,
        "gap_closed_best_baseline": row.gap_closed_best_baseline,
        "baseline": row.is_baseline,
        # A schedule is no number.
        "temperature": str(loss["temperature"]),
        "alpha": str(loss["alpha"]),
        "seed": row.results["seed"],
        "seconds": cost["student_seconds"],
    }


def workspace(entity: str, project: str, group: str, rows: list[JobRecord]) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in sections(rows).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_of_group(group),
            order=[ws.Ordering(ws.Summary("student.nll"), ascending=True)],
            pinned_columns=["run:displayName", "summary:student.nll", f"summary:{PERPLEXITY}"],
        ),
    )


def report(entity: str, project: str, group: str, rows: list[JobRecord]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P("Measured on the held-out test split, nll in nats per token.")]
    if rows:
        blocks.append(wr.MarkdownBlock(text=_markdown(rows)))
    for title, panels in sections(rows).items():
        runs = wr.Runset(name=group, filters=_of_group(group))
        blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(project=project, entity=entity, title=group, blocks=blocks, width="fluid")


def sections(rows: list[JobRecord]) -> dict[str, list[Any]]:
    """All panels, made anew: each belongs to one page. rows: none where only the group is known,
    and then neither is what takes a comparison."""
    import wandb_workspaces.reports.v2 as wr

    colours = [wr.GradientPoint(color=c, offset=o) for c, o in (("#4c9f70", 0), ("#d1495b", 100))]
    result: list[Any] = [
        wr.ScatterPlot(
            title="perplexity against parameters",
            x=wr.SummaryMetric(SIZE),
            y=wr.SummaryMetric(PERPLEXITY),
            log_x=True,
        ),
        wr.ScatterPlot(
            title="temperature × alpha, coloured by perplexity",
            x=wr.Config("loss.temperature"),
            y=wr.Config("loss.alpha"),
            z=wr.SummaryMetric(PERPLEXITY),
            gradient=colours,
        ),
    ]
    if rows:
        gaps = wr.CustomChart(
            query={"summaryTable": {"tableKey": RESULTS}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "job", "value": "gap_closed"},
            chart_strings={"title": "gap closed"},
        )
        result += [gaps, wr.WeavePanelSummaryTable(table_name=RESULTS)]
    axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in _swept_keys(rows)]
    axes.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("student.nll")))
    found = {
        "Results": result,
        "Which setting matters": [
            wr.ParameterImportancePlot(with_respect_to=TARGET),
            wr.ParallelCoordinatesPlot(columns=axes, title="settings and nll"),
        ],
        "Curves": [_curves(metric, title) for metric, title in CURVES.items()],
        "Samples": [wr.WeavePanelSummaryTable(table_name="samples")],
    }
    for panels in found.values():
        for i, panel in enumerate(panels):  # two side by side, on a grid 24 wide
            panel.layout = wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
    return found


def _curves(metric: str, title: str) -> Any:
    """A line a job: the mean of its seeds, with their deviation."""
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
    varying = varying_settings(jobs)
    kept = [k for k in varying if k.split(".")[0] != "seed" and not k.endswith("_")]
    return kept[:MAX_SETTINGS]


def _of_group(group: str) -> str:
    """A filter of runs. The package would double every `=` of the text, quoted or not."""
    quoted = "".join(c if c.isalnum() or c in " ._,-" else f"\\U{ord(c):08x}" for c in group)
    return f"Metric('Group') == '{quoted}'"


def _title(group: str) -> str:
    """A view's name, which W&B refuses symbols in, `=` among them."""
    return "".join(":" if unicodedata.category(c)[0] == "S" else c for c in group)


def _markdown(rows: list[JobRecord]) -> str:
    heads, *cells = table_cells(rows)
    lines = [heads, ("---",) * len(heads), *cells]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
