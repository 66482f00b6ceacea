"""The GPUs of one machine, shared out among the processes of a sweep.

Nothing here imports torch: which GPU a process sees has to be settled before torch asks.
"""

import logging
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

LAUNCHERS = ("gpus", "submitit_local")  # whose processes would all take the first GPU
GPU = ("gpu", "cuda")  # what Lightning calls them
BF16_SINCE = 8.0  # Ampere
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[FileLock] = []  # this process's place, until it ends


def visible_gpus() -> list[str]:
    """Those of CUDA_VISIBLE_DEVICES where that is set, else every one of this machine."""
    if (said := os.environ.get(VISIBLE)) is not None:
        names = (name.strip() for name in said.split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(found))]


def best_precision(accelerator: str) -> str:
    """bf16-mixed on GPUs that compute in it, else 32-true."""
    gpus = accelerator in ("auto", *GPU) and visible_gpus()
    return "bf16-mixed" if gpus and least_capability() >= BF16_SINCE else "32-true"


@cache
def least_capability() -> float:
    """CUDA's number for the abilities of this machine's oldest GPU; 0 where nothing says so.

    Asked once, since a configuration's precision is read many times.
    """
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
        return min((float(line) for line in told.split()), default=0.0)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0.0


def gpu_places(jobs_per_gpu: int) -> int:
    """How many jobs run side by side."""
    if found := len(visible_gpus()) * jobs_per_gpu:
        return found
    raise ConfigError(
        f"hydra/launcher=gpus finds no GPU, by {VISIBLE} or nvidia-smi. Without one, "
        "hydra/launcher=joblib runs jobs side by side."
    )


def gpu_share(jobs_per_gpu: int) -> float:
    """Of a GPU, for each job; 0 where there is none."""
    return 1 / jobs_per_gpu if visible_gpus() else 0


def take_gpu(jobs_per_gpu: int) -> None:
    """Makes one GPU the only one that this process sees, and waits for one that is free.

    A place on it is a locked file, which the system unlocks when the process ends, however it
    does. All sweeps of this user on this machine share the places.
    """
    if not visible_gpus():
        return
    if not _held:
        # First places first, so that no GPU is idle while another has two jobs.
        every = [(gpu, place) for place in range(jobs_per_gpu) for gpu in visible_gpus()]
        os.environ[VISIBLE] = _first_free(every)
    log.info("runs on GPU %s", os.environ[VISIBLE])


def _first_free(places: list[tuple[str, int]]) -> str:
    folder = Path(tempfile.gettempdir()) / f"lightning_distill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waited = False
    while True:
        for gpu, place in places:
            lock = FileLock(folder / f"gpu-{gpu.replace('/', '-')}-{place}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                _held.append(lock)
                return gpu
        if not waited:
            log.info("waiting for a GPU: all %d places are taken", len(places))
        waited = True
        time.sleep(0.5)
