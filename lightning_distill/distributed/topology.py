"""What `trainer` asks of the machine: devices, nodes, strategy."""

import os
from typing import TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill.distributed.gpus import BF16_SINCE, GPU, least_capability, visible_gpus

ALL = ("auto", "-1")  # devices
PROCESSES = 8  # for each processor, of which more only wait

Value = TypeVar("Value")


def local_devices(cfg: DictConfig) -> int:
    """The devices that `trainer` asks for; at least one."""
    asked = cfg.trainer.get("devices", 1)
    if isinstance(asked, list | ListConfig):
        return max(1, len(asked))
    if str(asked) in ALL:
        return len(visible_gpus()) or 1 if cfg.trainer.accelerator in ("auto", *GPU) else 1
    return max(1, int(asked)) if str(asked).isdecimal() else 1


def num_devices(cfg: DictConfig) -> int:
    """The processes that a job of this configuration is shared among."""
    nodes = cfg.trainer.get("num_nodes", 1)
    return local_devices(cfg) * (nodes if isinstance(nodes, int) else 1)  # or it is refused yet


def uses_fsdp(cfg: DictConfig) -> bool:
    return _strategy(cfg) == "FSDP2Strategy"


def _strategy(cfg: DictConfig) -> str:
    """The name of its class; empty where it is one of Lightning's words."""
    return str(OmegaConf.select(cfg, "trainer.strategy._target_") or "").rpartition(".")[2]


def hardware_problem(cfg: DictConfig) -> str | None:
    """What `trainer` asks for and this machine lacks."""
    trainer, asked = cfg.trainer, cfg.trainer.get("devices", 1)
    listed = list(asked) if isinstance(asked, list | ListConfig) else None
    if not (listed or str(asked) in ALL or (str(asked).isdecimal() and int(asked))):
        return f"trainer.devices={asked} must be a number of devices, a list of them, or auto"
    gpus = len(visible_gpus()) if trainer.accelerator in ("auto", *GPU) else 0
    if trainer.accelerator in GPU and not gpus:
        return (
            f"trainer.accelerator={trainer.accelerator}: there is no GPU; set trainer=cpu, or "
            "trainer.accelerator=auto"
        )
    if listed and not all(isinstance(one, int) and one >= 0 for one in listed):
        return f"trainer.devices={asked} must be a list of devices by their numbers, as in [0, 1]"
    if not gpus and local_devices(cfg) > (most := PROCESSES * (os.cpu_count() or 1)):
        return f"trainer.devices={asked} are as many processes on this machine; set {most} or fewer"
    highest = max(listed) if listed else local_devices(cfg) - 1
    if gpus and highest >= gpus:
        there = "is one GPU" if gpus == 1 else f"are {gpus} GPUs"
        return f"trainer.devices={asked}: there {there}; set trainer.devices={gpus} or fewer"
    if uses_fsdp(cfg) and num_devices(cfg) == 1:
        return (
            "trainer=fsdp splits models up among several devices, and has one; set "
            "trainer.devices=2 or more, or trainer=auto"
        )
    if uses_fsdp(cfg) and OmegaConf.select(cfg, "student.lora.rank"):
        return (
            f"student.lora.rank={cfg.student.lora.rank}: trainer=fsdp trains whole models; set "
            "trainer=ddp, or student.lora.rank=null"
        )
    if (place := OmegaConf.select(cfg, "teacher.device")) is not None:
        kind, _, index = str(place).partition(":")
        known = {"cpu": 1, "mps": 1, "cuda": len(visible_gpus())}.get(kind, 0)
        if (index and not index.isdecimal()) or int(index or 0) >= known:
            return f"teacher.device={place} is not there; set cpu, or null for the student's"
    half = str(trainer.get("precision", "")).startswith("bf16")
    if half and gpus and least_capability() < BF16_SINCE:
        return (
            f"trainer.precision={trainer.precision}: this GPU does not compute in bf16; set "
            "trainer.precision=16-mixed or 32-true"
        )
    return None
