"""Upload of the runs that were logged offline, with `wandb sync`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from lightning_distill.errors import ConfigError
from lightning_distill.tracking.wandb_environment import check_server, has_key
from lightning_distill.tracking.wandb_run import FINISHED

EMPTY_BYTES = 7  # size of a W&B file without records
IDLE_SECONDS = 600  # without a write, after which a run without a mark was killed
INCOMPLETE = "incomplete record"  # what `wandb sync` says of the file of a killed run


def upload_offline_runs(outputs: Path) -> None:
    """`stage=sync`: upload all runs below `outputs` that have ended and are not in W&B yet.

    Raises ConfigError without a key or server, or if a run was not uploaded.
    """
    runs = offline_runs(outputs)
    if not runs:
        print(f"no offline run below {outputs} is left to upload")
        return
    if not has_key():
        raise ConfigError(
            f"{len(runs)} offline runs below {outputs} wait for a W&B key: "
            "`wandb login`, or set WANDB_API_KEY."
        )
    check_server()  # `wandb sync` would retry without end
    ended = [run for run in runs if has_ended(run, runs)]
    if running := len(runs) - len(ended):
        print(f"{running} offline runs are still being written; upload them when they have ended")
    finished = [run for run in ended if all(map(_is_finished, _same_run(run, ended)))]
    if finished:
        subprocess.run(command(finished), env=_online())
    for run in ended:
        if run not in finished:
            _upload_killed(run)
    if left := set(ended) & set(offline_runs(outputs)):
        raise ConfigError(f"{len(left)} of {len(ended)} offline runs were not uploaded; see above.")
    print(f"uploaded {len(ended)} offline runs")


def _upload_killed(run: Path) -> None:
    """Upload one folder of a run that was killed, up to its last complete record.

    In one command with other folders, `wandb sync` would stop at the incomplete record and skip
    those that the run wrote after it was resumed.
    """
    done = subprocess.run(
        command([run]),
        env=_online(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(done.stdout, end="")
    if INCOMPLETE in done.stdout:
        _mark(_file_of(run)).touch()


def offline_runs(outputs: Path) -> list[Path]:
    """The folders of runs without the mark that `wandb sync` leaves, oldest first.

    Folders of runs that were killed before W&B wrote a record are left out.
    """
    files = sorted(outputs.rglob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    written = [file for file in files if file.stat().st_size > EMPTY_BYTES]
    return [file.parent for file in written if not _mark(file).exists()]


def has_ended(run: Path, runs: list[Path]) -> bool:
    """Whether nothing will be added to this folder: W&B would upload it again as a whole."""
    resumed = any(other.name > run.name for other in _same_run(run, runs))
    idle = time.time() - _file_of(run).stat().st_mtime > IDLE_SECONDS
    return _is_finished(run) or resumed or idle


def _is_finished(run: Path) -> bool:
    return (run / FINISHED).exists()


def _same_run(run: Path, runs: list[Path]) -> list[Path]:
    """The folders of one run, which has several if it was interrupted and resumed."""
    return [other for other in runs if _id(other) == _id(run)]


def _id(run: Path) -> str:
    return run.name.rpartition("-")[2]


def _file_of(run: Path) -> Path:
    (file,) = run.glob("run-*.wandb")
    return file


def _mark(file: Path) -> Path:
    return file.with_name(f"{file.name}.synced")


def command(runs: list[Path]) -> list[str]:
    return [sys.executable, "-m", "wandb", "sync", *map(str, runs)]


def _online() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
