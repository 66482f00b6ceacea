"""What a person watches while it runs: the trackers and the progress bar."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from lightning_distill.distributed import process_group
from lightning_distill.sweeps.job import Job
from lightning_distill.tracking import wandb_run
from lightning_distill.training.checkpoint_io import LAST, settle, step_of
from lightning_distill.training.metrics_csv import keep_curves

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


class StepLogger(WandbLogger):
    """Gives W&B the optimizer's step as its own, so that a run that goes on after an interruption
    says the same steps again, where W&B offline would count from 0."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        known = {} if step is None else {"trainer/global_step": step}
        self.experiment.log({**metrics, **known}, step=step)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger) and samples:
            columns = list(samples[0])
            try:
                logger.log_table("samples", columns, [[s[c] for c in columns] for s in samples])
            except Exception as error:  # for a table W&B asks its server first
                log.warning("W&B: the samples are in samples.json alone: %s", error)


class Tracker:
    """The loggers that `logger=` names, for the runs of one job."""

    def __init__(self, cfg: DictConfig, job: Job) -> None:
        self.cfg, self.job = cfg, job

    def start(self, folder: Path, checkpoints: Path, teacher: str | None = None) -> list[Logger]:
        """The loggers of `logger=`, writing below `folder`; W&B offline if there is no key.

        checkpoints: the folder of the training's; what an interrupted one has left there is gone on
        from, in the same W&B run. teacher: its key, where it is what is trained.
        """
        cfg, job = self.cfg, self.job
        if not process_group.is_rank_zero():
            return []
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        settle(checkpoints)  # curves and W&B's run go on from the same step as training
        loggers: list[Logger] = []
        for node in cfg.logger.values():
            if node["_target_"] != "wandb.init":
                loggers.append(instantiate(node, save_dir=str(folder)))
            elif teacher is None or not wandb_run.skips_teacher():
                told = (
                    wandb_run.teacher(cfg, job, teacher) if teacher else wandb_run.student(cfg, job)
                )
                run = wandb_run.start(node, told, checkpoints / "wandb_id")
                loggers.append(StepLogger(experiment=run, save_dir=str(folder)))
        last = checkpoints / LAST
        if last.exists():
            keep_curves(loggers, step_of(last))
        return loggers

    def finish(self, loggers: list[Logger], results: dict[str, Any]) -> None:
        """Writes the final numbers to W&B's summary and closes its run, so that the next job of a
        sweep in this process does not go on writing into it."""
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                wandb_run.finish(logger.experiment, results)
