"""Uploads what was logged offline: `make sync`, or `stage=sync`."""

import os
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig

from lightning_distill import ConfigError
from lightning_distill.results import Job
from lightning_distill.wandb_runs import has_key


def upload(cfg: DictConfig, job: Job) -> None:
    """All runs below `paths.outputs` that are not in W&B yet, students' and teachers'.

    A run that was interrupted has several folders; `wandb sync` puts them in order.
    """
    outputs = Path(cfg.paths.outputs)
    runs = offline_runs(outputs)
    if not runs:
        print(f"no offline run below {outputs} is left to upload")
        return
    if not has_key():
        raise ConfigError(
            f"{len(runs)} offline runs below {outputs} wait for a W&B key: "
            "`wandb login`, or set WANDB_API_KEY."
        )
    online = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    subprocess.run(command(runs), env=online)
    if left := offline_runs(outputs):
        raise ConfigError(f"{len(left)} of {len(runs)} offline runs were not uploaded; see above.")


def offline_runs(outputs: Path) -> list[Path]:
    """The folders of runs that W&B's own mark of an upload is missing in, oldest first."""
    files = sorted(outputs.rglob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    return [file.parent for file in files if not file.with_name(f"{file.name}.synced").exists()]


def command(runs: list[Path]) -> list[str]:
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
