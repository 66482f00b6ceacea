"""What a job leaves for others to read: `results.json`."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_distill.artifacts import key_of, write_whole

RESULTS = "results.json"

# What cannot change a job's numbers is no part of its key.
WITHOUT_EFFECT = ("stage", "name", "paths", "logger", "evaluate", "report", "sweep")


@dataclass(frozen=True)
class Job:
    """One run: where it writes, and what it is called."""

    folder: Path
    name: str
    group: str  # the sweep it belongs to, or its own kind
    overrides: list[str]
    seed: int
    key: str

    @classmethod
    def of(
        cls, cfg: DictConfig, folder: Path, name: str, group: str, overrides: list[str]
    ) -> "Job":
        return cls(folder, name, group, overrides, cfg.seed, settings_key(cfg))

    def was_interrupted(self) -> bool:
        """Whether a run with the same settings stopped half-way in this folder."""
        try:
            before = read_results(self.folder)
        except (OSError, ValueError):
            return False
        return before.get("status") == "running" and before.get("key") == self.key

    def results(self, cost: "Cost", scores: dict[str, Any]) -> dict[str, Any]:
        """The content of results.json for a job that came to its end."""
        return {**self.state("finished"), **scores, "cost": asdict(cost)}

    def state(self, status: str, **more: Any) -> dict[str, Any]:
        """The content of results.json for a job that has not."""
        said = {"status": status, "key": self.key, "seed": self.seed, "overrides": self.overrides}
        return {**said, **more}


def settings_key(cfg: DictConfig) -> str:
    """Equal for two jobs that must give the same numbers."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return key_of({str(k): v for k, v in settings.items() if k not in WITHOUT_EFFECT})


def write_results(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    return found


@dataclass
class Cost:
    """Seconds, 0 where something was reused; peak memory in MB (10⁶ bytes)."""

    teacher_seconds: float = 0.0
    transfer_seconds: float = 0.0
    student_seconds: float = 0.0
    student_tokens_per_second: float = 0.0
    peak_memory_mb: float = 0.0

    @contextmanager
    def measure(self, module: Any) -> Iterator[None]:
        """Times the student's training; `module.tokens_seen` counts its target tokens."""
        _reset_peak()
        start = time.perf_counter()
        yield
        self.student_seconds = time.perf_counter() - start
        self.student_tokens_per_second = int(module.tokens_seen) / self.student_seconds
        self.peak_memory_mb = _peak_mb()


def _reset_peak() -> None:
    import torch  # here, because a sweep's bookkeeping needs this module and not torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone forgets a process's peak on request
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
