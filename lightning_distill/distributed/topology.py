"""The devices that the settings of `trainer` ask for, and whether this machine has them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning_distill.distributed.gpus import BF16_SINCE, GPU, least_capability, visible_gpus

ALL_DEVICES = ("auto", "-1")  # values of trainer.devices
PROCESSES_PER_CORE = 8  # on CPUs; more processes only wait for each other


@dataclass(frozen=True)
class Hardware:
    """What a job asks of the machines that it runs on."""

    accelerator: str = "auto"
    devices: Any = 1  # a number, a list of indices, or one of ALL_DEVICES
    num_nodes: Any = 1
    strategy: str = ""  # class name; empty for the names that Lightning defines
    precision: str = ""
    teacher_device: str | None = None
    student_lora_rank: int | None = None

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "Hardware":
        """settings: resolved; of `teacher` and `student` only what is placed on the devices."""
        trainer, strategy = settings["trainer"], settings["trainer"].get("strategy")
        target = strategy.get("_target_", "") if isinstance(strategy, dict) else ""
        return cls(
            accelerator=trainer["accelerator"],
            devices=trainer.get("devices", 1),
            num_nodes=trainer.get("num_nodes", 1),
            strategy=target.rpartition(".")[2],
            precision=str(trainer.get("precision", "")),
            teacher_device=settings.get("teacher", {}).get("device"),
            student_lora_rank=(settings.get("student", {}).get("lora") or {}).get("rank"),
        )

    @property
    def local_devices(self) -> int:
        """Devices of this machine; at least one, also where `problem` refuses the setting."""
        if self.device_indices is not None:
            return max(1, len(self.device_indices))
        if str(self.devices) in ALL_DEVICES:
            return self._num_gpus or 1
        return max(1, int(self.devices)) if str(self.devices).isdecimal() else 1

    @property
    def num_devices(self) -> int:
        """Devices of all machines, each with a process of its own."""
        return self.local_devices * (self.num_nodes if isinstance(self.num_nodes, int) else 1)

    @property
    def device_indices(self) -> list[int] | None:
        """The devices, where they are listed by index."""
        return self.devices if isinstance(self.devices, list) else None

    @property
    def uses_fsdp(self) -> bool:
        return self.strategy == "FSDP2Strategy"

    @property
    def _num_gpus(self) -> int:
        return len(visible_gpus()) if self.accelerator in ("auto", *GPU) else 0

    def problem(self) -> str | None:
        """The first thing that this machine lacks, and what to set instead; None if nothing."""
        return next(self._problems(), None)

    def _problems(self) -> Iterator[str]:
        yield from self._problems_of_devices()
        if self.uses_fsdp and self.num_devices == 1:
            yield (
                "trainer=fsdp splits models among several devices, and has one; set "
                "trainer.devices=2 or more, or trainer=auto"
            )
        if self.uses_fsdp and self.student_lora_rank:
            yield (
                f"student.lora.rank={self.student_lora_rank}: trainer=fsdp trains whole models; "
                "set trainer=ddp, or student.lora.rank=null"
            )
        if self.teacher_device is not None and not _exists(self.teacher_device):
            yield (
                f"teacher.device={self.teacher_device} does not exist; set cpu, or null for the "
                "student's device"
            )
        half = self.precision.startswith("bf16")
        if half and self._num_gpus and least_capability() < BF16_SINCE:
            yield (
                f"trainer.precision={self.precision}: this GPU does not compute in bf16; set "
                "trainer.precision=16-mixed or 32-true"
            )

    def _problems_of_devices(self) -> Iterator[str]:
        asked = f"trainer.devices={self.devices}"
        indices, gpus = self.device_indices, self._num_gpus
        positive = str(self.devices).isdecimal() and int(self.devices) > 0
        if not (indices or str(self.devices) in ALL_DEVICES or positive):
            yield f"{asked} must be a number of devices, a list of them, or auto"
        if self.accelerator in GPU and not gpus:
            yield (
                f"trainer.accelerator={self.accelerator}: there is no GPU; set trainer=cpu, or "
                "trainer.accelerator=auto"
            )
        if indices and not all(isinstance(index, int) and index >= 0 for index in indices):
            yield f"{asked} must list devices by index, as in [0, 1]"
            return
        most = PROCESSES_PER_CORE * (os.cpu_count() or 1)
        if not gpus and self.local_devices > most:
            yield f"{asked} starts as many processes on this machine; set {most} or fewer"
        highest = max(indices) if indices else self.local_devices - 1
        if gpus and highest >= gpus:
            there = "is one GPU" if gpus == 1 else f"are {gpus} GPUs"
            yield f"{asked}: there {there}; set trainer.devices={gpus} or fewer"


def _exists(device: str) -> bool:
    kind, _, index = str(device).partition(":")
    count = {"cpu": 1, "mps": 1, "cuda": len(visible_gpus())}.get(kind, 0)
    return (not index or index.isdecimal()) and int(index or 0) < count
