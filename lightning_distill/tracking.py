"""What a person watches while it runs: the trackers and the progress bar."""

import csv
import logging
import netrc
import os
import secrets
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import transformers
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

# Said once for each trainer or model of a sweep, and nothing to act on.
for message in (
    ".*logs directory.*not empty.*",
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*predict returned None.*",
):
    warnings.filterwarnings("ignore", message)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
transformers.utils.logging.disable_progress_bar()

LAST = "last.ckpt"
INIT_TIMEOUT = 30  # seconds that W&B's server may take to answer before the run goes offline


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


def start_loggers(
    cfg: DictConfig, job_type: str, folder: Path, name: str, group: str, checkpoints: Path
) -> list[Logger]:
    """The loggers of `logger=`, writing below `folder`; W&B offline if there is no key.

    job_type: teacher or student. group: a sweep's jobs share one. checkpoints: the folder of the
    training's; what an interrupted one has left there is gone on from, in the same W&B run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = []
    for node in cfg.logger.values():
        if node["_target_"] == "wandb.init":
            run_id = _kept(checkpoints / "wandb_id")
            loggers.append(_start_wandb(cfg, node, job_type, folder, name, group, run_id))
        else:
            loggers.append(instantiate(node, save_dir=str(folder)))
    last = checkpoints / LAST
    if last.exists():
        for logger in loggers:
            if isinstance(logger, CSVLogger):
                _keep_curves(logger, step_of(last))
    return loggers


def finish_loggers(loggers: list[Logger], results: dict[str, Any]) -> None:
    """Writes the final numbers to W&B's summary and closes its run, so that the next job of a
    sweep in this process does not go on writing into it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(results)
            logger.experiment.finish()


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger) and samples:
            columns = list(samples[0])
            logger.log_table("samples", columns, [[s[c] for c in columns] for s in samples])


def step_of(checkpoint: Path) -> int:
    """How many steps were made before it."""
    found: int = torch.load(checkpoint, "cpu", weights_only=True, mmap=True)["global_step"]
    return found


def _kept(file: Path) -> str:
    """A name for a tracked run: the file's, or a new one that is written there."""
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    return file.read_text()


def _keep_curves(logger: CSVLogger, step: int) -> None:
    """Leaves in metrics.csv what came before this step; Lightning would start an empty file."""
    file = Path(logger.log_dir) / "metrics.csv"
    if not file.exists():
        return
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]
    before: list[Any] = [row for row in rows if int(row["step"]) < step]
    logger.experiment.metrics = before
    logger.save()


def _start_wandb(
    cfg: DictConfig,
    node: Any,
    job_type: str,
    folder: Path,
    name: str,
    group: str,
    run_id: str,
) -> WandbLogger:
    import wandb

    def start(mode: str) -> Any:
        return instantiate(node, _partial_=True)(
            id=run_id,
            resume="allow",
            name=name,
            dir=str(folder),
            mode=mode,
            group=group,
            job_type=job_type,
            config=OmegaConf.to_container(cfg, resolve=True),
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT),
            reinit="finish_previous",  # a job that failed may have left its run open
        )

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    try:
        run = start(mode)
    except Exception as error:  # a refused key, a server that is away: of many kinds
        if mode != "online":
            raise
        log.warning("W&B cannot be reached, so this run is logged offline: %s", error)
        os.environ["WANDB_MODE"] = "offline"  # later jobs of a sweep need not ask again
        run = start("offline")
    run.define_metric("*", step_metric="trainer/global_step")
    if run.offline:
        log.info("W&B: offline; upload with `wandb sync %s`", Path(run.dir).parent)
    elif run.url:
        log.info("W&B: %s", run.url)
    return WandbLogger(experiment=run, save_dir=str(folder))


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
