"""The stages on finished runs and sweeps: `stage=report`, `stage=dashboard` and `stage=sync`."""

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_distill.errors import ConfigError
from lightning_distill.report.summarize import summarize_named_sweep
from lightning_distill.sweeps.job import Job
from lightning_distill.tracking.wandb_dashboard import save_dashboard
from lightning_distill.tracking.wandb_sync import upload_offline_runs


def report(cfg: DictConfig, job: Job) -> None:
    summarize_named_sweep(str(cfg.report.sweep or ""), Path(cfg.paths.outputs))


def dashboard(cfg: DictConfig, job: Job) -> None:
    sweep, outputs = str(cfg.dashboard.sweep or ""), Path(cfg.paths.outputs)
    if not sweep:
        raise ConfigError("stage=dashboard needs dashboard.sweep=<a sweep's folder, or its group>.")
    wandb = cfg.logger.get("wandb")
    if wandb is None:
        raise ConfigError("stage=dashboard needs logger=wandb, which names the project.")
    make_init = partial(instantiate, wandb, _partial_=True)
    save_dashboard(make_init, sweep, outputs, wandb.project, wandb.entity)


def sync(cfg: DictConfig, job: Job) -> None:
    upload_offline_runs(Path(cfg.paths.outputs))
