"""The GPUs of this machine, and their distribution among the processes of a sweep.

Nothing here imports torch: CUDA_VISIBLE_DEVICES has to be set before torch reads it.
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

LAUNCHERS = ("gpus", "submitit_local")  # Hydra launchers whose jobs would all use the first GPU
GPU = ("gpu", "cuda")  # Lightning's names of the accelerator
BF16_SINCE = 8.0  # compute capability of Ampere
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[FileLock] = []  # this process's slot, until it ends


def visible_gpus() -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES where that is set, else all of this machine."""
    if (visible := os.environ.get(VISIBLE)) is not None:
        names = (name.strip() for name in visible.split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA reads it
    lines = _nvidia_smi("-L").splitlines()
    count = sum(line.startswith("GPU ") for line in lines)
    return [str(index) for index in range(count)]


def best_precision(accelerator: str) -> str:
    """bf16-mixed on GPUs that compute in it, else 32-true."""
    gpus = accelerator in ("auto", *GPU) and visible_gpus()
    return "bf16-mixed" if gpus and least_capability() >= BF16_SINCE else "32-true"


@cache  # a configuration's precision is resolved many times
def least_capability() -> float:
    """The lowest CUDA compute capability of this machine's GPUs; 0 where it is unknown."""
    output = _nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader")
    with suppress(ValueError):
        return min((float(line) for line in output.split()), default=0.0)
    return 0.0


def _nvidia_smi(*arguments: str) -> str:
    """What the command prints; nothing where it does not exist or does not end."""
    try:
        command = ["nvidia-smi", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def gpu_places(jobs_per_gpu: int) -> int:
    """The number of jobs that run at a time. Raises ConfigError without a GPU."""
    if count := len(visible_gpus()) * jobs_per_gpu:
        return count
    raise ConfigError(
        f"hydra/launcher=gpus finds no GPU, by {VISIBLE} or nvidia-smi. Without one, "
        "hydra/launcher=joblib runs jobs side by side."
    )


def gpu_share(jobs_per_gpu: int) -> float:
    """The fraction of a GPU for each job; 0 where there is none."""
    return 1 / jobs_per_gpu if visible_gpus() else 0


def take_gpu(jobs_per_gpu: int) -> None:
    """Waits for a free GPU and makes it the only one that this process sees.

    A slot on a GPU is a locked file, which the system unlocks when the process ends, however it
    does. All sweeps of this user on this machine share the slots.
    """
    if not visible_gpus():
        return
    if not _held:
        # First slots first, so that no GPU is idle while another has two jobs.
        slots = [(gpu, slot) for slot in range(jobs_per_gpu) for gpu in visible_gpus()]
        os.environ[VISIBLE] = _lock_slot(slots)
    log.info("runs on GPU %s", os.environ[VISIBLE])


def _lock_slot(slots: list[tuple[str, int]]) -> str:
    """Returns the GPU of the first slot that is free, which this process holds from then on."""
    folder = Path(tempfile.gettempdir()) / f"lightning_distill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waited = False
    while True:
        for gpu, slot in slots:
            lock = FileLock(folder / f"gpu-{gpu.replace('/', '-')}-{slot}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                _held.append(lock)
                return gpu
        if not waited:
            log.info("waiting for a GPU: all %d slots are taken", len(slots))
        waited = True
        time.sleep(0.5)
