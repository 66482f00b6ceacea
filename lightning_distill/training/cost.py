"""The cost of a job: seconds and memory."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Cost:
    """Seconds, 0 for what was reused; peak memory of the student in MB (10⁶ bytes)."""

    teacher_seconds: float = 0.0
    transfer_seconds: float = 0.0
    student_seconds: float = 0.0
    student_tokens_per_second: float = 0.0
    peak_memory_mb: float = 0.0
    skipped_steps: int = 0  # the student's steps with a NaN or Inf loss or gradient

    @contextmanager
    def measure(self, module: Any) -> Iterator[None]:
        """Measures the student's training, including the seconds before it was interrupted.

        module: the `StudentModule` that is trained; its `global_tokens_seen` counts target tokens.
        """
        reset_peak_memory()
        start = time.perf_counter()
        yield
        self.student_seconds = module.seconds_before + time.perf_counter() - start
        self.student_tokens_per_second = module.global_tokens_seen / self.student_seconds
        self.peak_memory_mb = peak_memory_mb()
        self.skipped_steps = module.guard.count


def reset_peak_memory() -> None:
    import torch  # here, because sweeps import this module without torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # resets VmHWM; Linux only
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """The peak memory of the GPU, or of the process if there is no GPU, since the last reset."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
