"""`results.csv`, `report.html` and the terminal's table of a sweep."""

from pathlib import Path

from lightning_distill.errors import ConfigError
from lightning_distill.stages import STAGES
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.records import JobRecord, job_folders


def summarize(folder: Path) -> list[JobRecord]:
    """Write results.csv and report.html of a sweep's folder, and print the table."""
    from lightning_distill.report.page import write_report  # plotly is slow to import
    from lightning_distill.report.tables import print_results, write_csv

    jobs = compare_jobs(folder)
    write_csv(jobs, folder / "results.csv")
    write_report(jobs, folder / "report.html")
    print_results(jobs)
    print(f"results: {folder / 'results.csv'}\nreport:  {folder / 'report.html'}")
    return jobs


def summarize_named_sweep(sweep: str, outputs: Path) -> None:
    """The summary of the sweep's folder that `report.sweep` names.

    Raises ConfigError, with the sweeps below `outputs`, if the folder has no jobs.
    """
    if not sweep:
        raise ConfigError("stage=report needs report.sweep=<the folder of a sweep>.")
    folder = Path(sweep)
    if not job_folders(folder):
        problem = "has no jobs" if folder.is_dir() else "is not a folder"
        others = (file.parent for file in outputs.rglob("multirun.yaml"))
        inspections = {name for name, stage in STAGES.items() if stage.inspects_only}
        sweeps = ", ".join(str(f) for f in sorted(others)[:10] if f.parent.name not in inspections)
        hint = f" Choose one of {sweeps}." if sweeps else ""
        raise ConfigError(f"report.sweep={folder} {problem}.{hint}")
    summarize(folder)
