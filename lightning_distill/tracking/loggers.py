"""The loggers of `logger=`."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_distill.distributed import process_group
from lightning_distill.sweeps.job import Job
from lightning_distill.tracking import wandb_run
from lightning_distill.tracking.wandb_environment import agent_sweep_id
from lightning_distill.tracking.wandb_naming import RunDescription
from lightning_distill.training.checkpoint_io import LAST, restore_newest, step_of
from lightning_distill.training.metrics_csv import truncate_curves

log = logging.getLogger(__name__)

# Warnings of Lightning that need no action, and are repeated for each trainer of a sweep.
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


class StepLogger(WandbLogger):
    """Logs with the optimizer step as W&B's step.

    W&B's own count would start at 0 again when an offline run is resumed.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        axis = {} if step is None else {"trainer/global_step": step}
        self.experiment.log({**metrics, **axis}, step=step)


@dataclass(frozen=True)
class LoggerFactory:
    """make: the logger, called with `save_dir=`; for W&B it returns a partial of `wandb.init`.

    tags: of the W&B run.
    """

    make: Callable[..., Any]
    is_wandb: bool = False
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tracker:
    """The loggers for the trainings of one job.

    settings: of the `Run`.
    """

    factories: list[LoggerFactory]
    job: Job
    settings: dict[str, Any]

    def start(self, folder: Path, checkpoints: Path, teacher: str | None = None) -> list[Logger]:
        """The loggers of one training, which write below `folder`; none on ranks other than 0.

        checkpoints: the folder of the training's checkpoints; with one in it, its curves and its
        W&B run are continued. teacher: the key of the teacher that is trained, if it is one.
        """
        if not process_group.is_rank_zero():
            return []
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        restore_newest(checkpoints)  # the curves must end at the step where training resumes
        loggers: list[Logger] = []
        for factory in self.factories:
            if not factory.is_wandb:
                loggers.append(factory.make(save_dir=str(folder)))
            elif teacher is None or not agent_sweep_id():  # an agent's run is the student's
                description = RunDescription(self.settings, self.job, factory.tags)
                arguments = description.of_teacher(teacher) if teacher else description.of_student()
                id_file = checkpoints / "wandb_id"
                run = wandb_run.start(factory.make, arguments, id_file, self.job.is_of_sweep)
                loggers.append(StepLogger(experiment=run, save_dir=str(folder)))
        last = checkpoints / LAST
        if last.exists():
            truncate_curves(loggers, step_of(last))
        return loggers

    def finish(self, loggers: list[Logger], results: dict[str, Any]) -> None:
        """Writes the results to W&B's summary and ends its run.

        The next job of the sweep in this process would otherwise log to the same run.
        """
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                wandb_run.finish(logger.experiment, results)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger) and samples:
            columns = list(samples[0])
            try:
                logger.log_table("samples", columns, [[s[c] for c in columns] for s in samples])
            except Exception as error:  # W&B contacts its server before it logs a table
                log.warning("W&B: the samples were not logged; they are in samples.json: %s", error)
