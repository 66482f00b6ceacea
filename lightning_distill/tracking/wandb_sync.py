"""Uploads what was logged offline: `make sync`, or `stage=sync`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from lightning_distill.errors import ConfigError
from lightning_distill.sweeps.job import Job
from lightning_distill.tracking.wandb_run import check_server, has_key

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
    check_server()  # for which `wandb sync` would wait for ever
    ended = [folder for folder in runs if has_ended(folder, runs)]
    if going_on := len(runs) - len(ended):
        print(f"{going_on} offline runs are still being written; upload them when they have ended")
    if not ended:
        return
    online = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    subprocess.run(command(ended), env=online)
    if left := set(ended) & set(offline_runs(outputs)):
        raise ConfigError(f"{len(left)} of {len(ended)} offline runs were not uploaded; see above.")


def offline_runs(outputs: Path) -> list[Path]:
    """The folders of runs that lack W&B's own mark of an upload, oldest first.

    Without those that were killed before W&B wrote a record: it would refuse all for one of them.
    """
    files = sorted(outputs.rglob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    written = [file for file in files if file.stat().st_size > HEADER]
    return [file.parent for file in written if not file.with_name(f"{file.name}.synced").exists()]


def has_ended(folder: Path, runs: list[Path]) -> bool:
    """Whether nothing will be added to a run's folder, which W&B would upload again as a whole.

    The record that a killed run left half-written is taken away: for it W&B would upload neither
    the rest nor what the run logged when it went on, in another folder.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    (file,) = folder.glob("run-*.wandb")
    whole, last = _last_record(file.read_bytes())
    if Record.FromString(last).HasField("exit"):
        return True
    went_on = any(_id(other) == _id(folder) and other.name > folder.name for other in runs)
    if not went_on and time.time() - file.stat().st_mtime < QUIET:
        return False
    os.truncate(file, whole)
    return True


def _last_record(data: bytes) -> tuple[int, bytes]:
    """Where the last whole record ends, and what it says.

    A record is in parts of 4 bytes of checksum, 2 of length, 1 of kind, and the content; kinds 1
    and 4 end it (LevelDB's log format).
    """
    at = whole = HEADER
    record = last = b""
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if at <= len(data) and kind in (1, 4):
            whole, last, record = at, record, b""
    return whole, last


def _id(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def command(runs: list[Path]) -> list[str]:
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
