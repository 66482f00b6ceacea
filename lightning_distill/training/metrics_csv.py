"""The curves in `metrics.csv` of a run that resumes."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger


def keep_curves(loggers: list[Logger], step: int) -> None:
    """Leaves in metrics.csv what came before this step; Lightning would start an empty file."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        file = Path(logger.log_dir) / "metrics.csv"
        if not file.exists():
            continue
        with file.open() as lines:
            rows = [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]
        before: list[Any] = [row for row in rows if int(row["step"]) < step]
        logger.experiment.metrics = before
        file.unlink(missing_ok=True)  # else they are added to what is in it
        logger.save()
