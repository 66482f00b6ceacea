"""Uploads what was logged offline: `make sync`, or `stage=sync`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from lightning_distill import ConfigError
from lightning_distill.results import Job
from lightning_distill.wandb_runs import has_key

HEADER = 7  # bytes at the start of W&B's files, and of each part of a record
BLOCK = 32768  # bytes that no part of a record crosses
QUIET = 600  # seconds without a write, after which a run has surely died


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
    for folder in runs:
        later = any(_id(other) == _id(folder) for other in runs[runs.index(folder) + 1 :])
        (file,) = folder.glob("run-*.wandb")
        if later or time.time() - file.stat().st_mtime > QUIET:
            cut_off(file)
    online = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    subprocess.run(command(runs), env=online)
    if left := offline_runs(outputs):
        raise ConfigError(f"{len(left)} of {len(runs)} offline runs were not uploaded; see above.")


def offline_runs(outputs: Path) -> list[Path]:
    """The folders of runs that lack W&B's own mark of an upload, oldest first.

    Without those that were killed before W&B wrote a record: it would refuse all for one of them.
    """
    files = sorted(outputs.rglob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    written = [file for file in files if file.stat().st_size > HEADER]
    return [file.parent for file in written if not file.with_name(f"{file.name}.synced").exists()]


def cut_off(file: Path) -> None:
    """Takes away the record that a killed run left half-written, for which W&B would upload
    neither the rest nor what the run logged when it went on.

    A record is in parts of 4 bytes of checksum, 2 of length, 1 of kind, and the content; kinds 1
    and 4 end it (LevelDB's log format).
    """
    data = file.read_bytes()
    at = whole = HEADER
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += HEADER + length
        if at <= len(data) and kind in (1, 4):
            whole = at
    os.truncate(file, whole)


def _id(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def command(runs: list[Path]) -> list[str]:
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
