"""The metrics.csv of a training that is resumed."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger


def truncate_curves(loggers: list[Logger], step: int) -> None:
    """Removes the rows from `step` on, which the resumed training writes again.

    Lightning would start with an empty file.
    """
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        file = Path(logger.log_dir) / "metrics.csv"
        if not file.exists():
            continue
        with file.open() as lines:
            rows = [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]
        earlier: list[Any] = [row for row in rows if int(row["step"]) < step]
        logger.experiment.metrics = earlier
        file.unlink(missing_ok=True)  # `save` appends to an existing file
        logger.save()
