"""What a person watches while it runs: the trackers and the progress bar."""

import csv
import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from lightning_distill import ranks, wandb_runs
from lightning_distill.checkpoints import LAST, settle, step_of
from lightning_distill.results import Job

log = logging.getLogger(__name__)

# Said once for each trainer or model of a sweep, and nothing to act on.
for message in (
    ".*directory.*not empty.*",
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # the sampler is, by the step
    ".*smaller than the logging interval.*",
    ".*predict returned None.*",
    ".*have passed in a `LightningDataModule`.*",
):
    warnings.filterwarnings("ignore", message)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
transformers.utils.logging.disable_progress_bar()


class Progress(TQDMProgressBar):
    """One bar for the whole of a training run, with the time left."""

    def __init__(self, role: str) -> None:
        super().__init__(refresh_rate=10)
        self.role = role

    @property
    def train_description(self) -> str:
        return f"training {self.role}"

    @property
    def test_description(self) -> str:
        return f"evaluating {self.role}"

    @property
    def predict_description(self) -> str:
        return f"writing {self.role}"

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        # Lightning says "Epoch 0"; a run is one epoch, so that says nothing.
        self.train_progress_bar.set_description(self.train_description)


def progress(role: str) -> list[Callback]:
    """A progress bar where somebody can see it move; none in a file."""
    return [Progress(role)] if sys.stderr.isatty() else []


class StepLogger(WandbLogger):
    """Gives W&B the optimizer's step as its own, so that a run that goes on after an interruption
    says the same steps again, where W&B offline would count from 0."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        known = {} if step is None else {"trainer/global_step": step}
        self.experiment.log({**metrics, **known}, step=step)


def start_loggers(
    cfg: DictConfig, job: Job, folder: Path, checkpoints: Path, teacher: str | None = None
) -> list[Logger]:
    """The loggers of `logger=`, writing below `folder`; W&B offline if there is no key.

    checkpoints: the folder of the training's; what an interrupted one has left there is gone on
    from, in the same W&B run. teacher: its key, where it is what is trained.
    """
    if not ranks.first():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    settle(checkpoints)  # curves and W&B's run go on from the same step as training
    loggers: list[Logger] = []
    for node in cfg.logger.values():
        if node["_target_"] != "wandb.init":
            loggers.append(instantiate(node, save_dir=str(folder)))
        elif teacher is None or not wandb_runs.skips_teacher():
            told = (
                wandb_runs.teacher(cfg, job, teacher) if teacher else wandb_runs.student(cfg, job)
            )
            run = wandb_runs.start(node, told, checkpoints / "wandb_id")
            loggers.append(StepLogger(experiment=run, save_dir=str(folder)))
    last = checkpoints / LAST
    if last.exists():
        keep_curves(loggers, step_of(last))
    return loggers


def finish_loggers(loggers: list[Logger], results: dict[str, Any]) -> None:
    """Writes the final numbers to W&B's summary and closes its run, so that the next job of a
    sweep in this process does not go on writing into it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb_runs.finish(logger.experiment, results)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger) and samples:
            columns = list(samples[0])
            try:
                logger.log_table("samples", columns, [[s[c] for c in columns] for s in samples])
            except Exception as error:  # for a table W&B asks its server first
                log.warning("W&B: the samples are in samples.json alone: %s", error)


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
