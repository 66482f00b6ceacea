"""What happens around a sweep's jobs: a failure is recorded, and the end is a summary."""

import csv
import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lightning_distill import ConfigError
from lightning_distill.comparison import COLUMNS, Row, gather, table_cells
from lightning_distill.report import write_report
from lightning_distill.results import RESULTS, Job, write_results

log = logging.getLogger(__name__)


class Summary(Callback):
    """Hydra calls it when all jobs of a sweep have ended: table, results.csv and report.html."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.start = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.stage not in ("distill", "teacher"):
            return
        folder = Path(config.hydra.sweep.dir)
        compare_with_late_teachers(folder, config.paths.outputs)
        rows = summarise(folder)
        now = [row for row in rows if (row.folder / RESULTS).stat().st_mtime >= self.start]
        failed = [row for row in now if row.results["status"] == "failed"]
        for row in failed:
            print(f"failed: {row.name}: {row.results['error']} ({row.folder / 'job.log'})")
        if failed:
            # Hydra turns a callback's exceptions into warnings, this one excepted.
            sys.exit(2 if all(row.results["mendable"] for row in failed) else 1)


def summarise(folder: Path) -> list[Row]:
    """Writes results.csv and report.html, prints the table, and returns the rows."""
    rows = gather(folder)
    write_csv(rows, folder / "results.csv")
    write_report(rows, folder / "report.html")
    print_table(rows)
    print(f"results: {folder / 'results.csv'}\nreport:  {folder / 'report.html'}")
    return rows


def summarise_again(cfg: DictConfig, job: Job) -> None:
    """`stage=report`: the summary of a sweep's folder, `report.sweep=<folder>`, as it is now."""
    if cfg.report.sweep is None:
        raise ConfigError("stage=report needs report.sweep=<the folder of a sweep>.")
    folder = Path(cfg.report.sweep)
    if not any(folder.rglob(RESULTS)):
        raise ConfigError(f"report.sweep={folder} holds no job with a {RESULTS}.")
    summarise(folder)


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


def compare_with_late_teachers(folder: Path, outputs: str) -> None:
    """A baseline that ran before the sweep's teacher was there is measured against it now."""
    rows = [r for r in gather(folder) if r.nll is not None]
    if not any(r.results.get("teacher") for r in rows):
        return
    from lightning_distill.pipeline import evaluate_run

    for row in rows:
        if not row.results.get("teacher"):
            log.info("%s ran before its teacher was there: comparing them now", row.name)
            evaluate_run(row.folder, outputs)


def record_failure(folder: Path, overrides: list[str], reason: str, mendable: bool) -> None:
    """A failed job's results.json: the first line of why, and whether the user can mend it."""
    results = {"status": "failed", "overrides": overrides, "error": reason, "mendable": mendable}
    write_results(folder, results)


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
