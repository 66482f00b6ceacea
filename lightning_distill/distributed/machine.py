"""The machine and the versions that a run was made with, for results.json."""

import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("lightning_distill", "torch", "lightning", "transformers")


def environment() -> dict[str, str]:
    """`machine` in words, `python`, and the version of each package that decides the numbers."""
    versions = {name: version(name) for name in PACKAGES}
    return {"machine": machine(), "python": platform.python_version(), **versions}


def machine() -> str:
    """The GPUs, or else the processor, as in `2 cores of Intel Xeon Platinum 8481C`."""
    import torch  # here, because sweeps import this room without torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{len(os.sched_getaffinity(0))} cores of {_processor()}" if _linux() else _processor()


def _linux() -> bool:
    return hasattr(os, "sched_getaffinity")


def _processor() -> str:
    with suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].partition("@")[0]
                for mark in ("(R)", "(TM)", "CPU", "Processor"):
                    name = name.replace(mark, "")
                return " ".join(name.split())
    return platform.processor() or platform.machine()
