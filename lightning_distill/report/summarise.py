"""`results.csv`, `report.html` and the terminal's table of a sweep."""

from pathlib import Path

from omegaconf import DictConfig

from lightning_distill.errors import ConfigError
from lightning_distill.stages import LOOKING
from lightning_distill.sweeps.comparison import gather
from lightning_distill.sweeps.job import Job
from lightning_distill.sweeps.records import Row, job_folders


def summarise(folder: Path) -> list[Row]:
    """Writes results.csv and report.html, prints the table, and returns the rows."""

    from lightning_distill.report.page import write_report  # plotly is slow
    from lightning_distill.report.tables import print_table, write_csv

    rows = gather(folder)
    write_csv(rows, folder / "results.csv")
    write_report(rows, folder / "report.html")
    print_table(rows)
    print(f"results: {folder / 'results.csv'}\nreport:  {folder / 'report.html'}")
    return rows


def summarise_again(cfg: DictConfig, job: Job) -> None:
    """`stage=report`: the summary of a sweep's folder, `report.sweep=<folder>`, as it is now."""
    if cfg.report.sweep in (None, ""):
        raise ConfigError("stage=report needs report.sweep=<the folder of a sweep>.")
    folder = Path(str(cfg.report.sweep))
    if not job_folders(folder):
        there = "holds" if folder.is_dir() else "is no folder: it holds"
        others = (f.parent for f in Path(cfg.paths.outputs).rglob("multirun.yaml"))
        sweeps = ", ".join(str(f) for f in sorted(others)[:10] if f.parent.name not in LOOKING)
        hint = f" Sweeps are {sweeps}." if sweeps else ""
        raise ConfigError(f"report.sweep={folder} {there} no job, finished or begun.{hint}")
    summarise(folder)
