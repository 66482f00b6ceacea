"""`results.csv`, `report.html` and the terminal's table of a sweep; the last screen of a run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from lightning_distill.activity import activity
from lightning_distill.errors import ConfigError
from lightning_distill.screen import above_bars, shown
from lightning_distill.stages import STAGES
from lightning_distill.storage.artifacts import key_of
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.records import JobRecord, job_folders

MAX_NAME = 200  # of a folder, in characters; file systems have a limit of 255 bytes


def summarize(folder: Path, sweeps: Sequence[Path] = ()) -> list[JobRecord]:
    """Write results.csv and report.html into a folder, and print the table.

    sweeps: whose jobs they show; by default those below the folder itself.
    """
    with activity("writing the report"):
        from lightning_distill.report.page import write_report  # plotly is slow to import
        from lightning_distill.report.tables import print_results, write_csv

        jobs = compare_jobs(*(sweeps or [folder]))
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(jobs, folder / "results.csv")
        write_report(jobs, folder / "report.html")
    with above_bars(sys.stdout):
        print_results(jobs)
        print(f"results: {shown(folder / 'results.csv')}\nreport:  {shown(folder / 'report.html')}")
    return jobs


def summarize_run(folder: Path) -> None:
    """Print the scores of a single run, one of its samples, and where its files are."""
    from lightning_distill.report.tables import print_results

    (job,) = [job for job in compare_jobs(folder) if job.folder == folder]
    print_results([job])
    if not job.is_baseline:
        print(f"gap closed: needs a baseline. A sweep has one: {_with_baseline(job)}")
    if job.samples:
        sample = job.samples[0]
        print(f"\nsample 1 of {len(job.samples)}:")
        for name, text in sample.items():
            print(f"  {name}:\n{indent(text.strip(), ' ' * 4)}")
        print()
    for name, file in (("student", "student"), ("results", "results.json")):
        if (folder / file).exists():
            print(f"{name}: {shown(folder / file)}")


def _with_baseline(job: JobRecord) -> str:
    """The command of a sweep that has the job and its baseline."""
    overrides = job.results["overrides"]
    alphas = [one.partition("=")[2] for one in overrides if one.startswith("loss.alpha=")]
    kept = [one for one in overrides if not one.startswith("loss.alpha=")]
    return shlex.join(["lightning-distill", "-m", *kept, f"loss.alpha=0,{[*alphas, '1'][0]}"])


def summarize_named_sweeps(sweeps: Sequence[str], outputs: Path) -> None:
    """The summary of the sweeps' folders that `report.sweep` names.

    That of one sweep is in its folder; that of several in `<outputs>/reports`.
    Raises ConfigError, with the sweeps below `outputs`, if a folder has no jobs.
    """
    if not sweeps:
        raise ConfigError("stage=report needs report.sweep=<the folder of a sweep>.")
    folders = list(dict.fromkeys(map(Path, sweeps)))
    for folder in folders:
        _check_has_jobs(folder, outputs)
    if len(folders) == 1:
        summarize(folders[0])
    else:
        paths = [folder.resolve() for folder in folders]
        name = "+".join(path.name for path in paths)[:MAX_NAME]
        key = key_of({"sweeps": [str(path) for path in paths]})[:6]
        summarize(outputs / "reports" / f"{name}-{key}", folders)


def _check_has_jobs(folder: Path, outputs: Path) -> None:
    if not job_folders(folder):
        problem = "has no jobs" if folder.is_dir() else "is not a folder"
        others = (file.parent for file in outputs.rglob("multirun.yaml"))
        inspections = {name for name, stage in STAGES.items() if stage.inspects_only}
        sweeps = ", ".join(str(f) for f in sorted(others)[:10] if f.parent.name not in inspections)
        hint = f" Choose one of {sweeps}." if sweeps else ""
        raise ConfigError(f"report.sweep={folder} {problem}.{hint}")
