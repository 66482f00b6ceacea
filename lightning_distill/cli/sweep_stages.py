"""The stages on finished runs and sweeps: `stage=report`, `stage=dashboard` and `stage=sync`."""

from functools import partial
from pathlib import Path

from hydra.utils import instantiate

from lightning_distill.config.settings import Settings
from lightning_distill.errors import ConfigError
from lightning_distill.report.summarize import summarize_named_sweeps
from lightning_distill.sweeps.job import Job
from lightning_distill.tracking.wandb_dashboard import save_dashboard
from lightning_distill.tracking.wandb_sync import upload_offline_runs


def report(settings: Settings, job: Job) -> None:
    sweep = settings["report"]["sweep"]
    sweeps = sweep if isinstance(sweep, list) else [sweep]
    summarize_named_sweeps([str(one) for one in sweeps if one], _outputs(settings))


def dashboard(settings: Settings, job: Job) -> None:
    sweep, outputs = str(settings["dashboard"]["sweep"] or ""), _outputs(settings)
    if not sweep:
        raise ConfigError("stage=dashboard needs dashboard.sweep=<a sweep's folder, or its group>.")
    wandb = settings["logger"].get("wandb")
    if wandb is None:
        raise ConfigError("stage=dashboard needs logger=wandb, which names the project.")
    make_init = partial(instantiate, wandb, _partial_=True)
    save_dashboard(make_init, sweep, outputs, wandb["project"], wandb["entity"])


def sync(settings: Settings, job: Job) -> None:
    upload_offline_runs(_outputs(settings))


def _outputs(settings: Settings) -> Path:
    return Path(settings["paths"]["outputs"])
