"""The processes that a job is shared among: one for each device, all walking through the pipeline.

Rank 0 decides, writes and is listened to; the others hear from it what is to be done. Nothing here
imports torch before there are several.
"""

import atexit
import faulthandler
import os
from datetime import timedelta
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill.devices import BF16_SINCE, GPU, least_capability, visible_gpus

# A rank may wait for as long as rank 0 needs to tokenize a large text. That one of them has died
# is noticed by who started them.
LONGEST_WAIT = timedelta(days=7)
PATIENCE = 20.0  # seconds that ranks have to end in once one of them has failed

ALL = ("auto", "-1")  # devices
PROCESSES = 8  # for each processor, of which more only wait

Value = TypeVar("Value")


def number() -> int:
    """This process's rank; 0 where it is alone."""
    return int(os.environ.get("RANK", 0)) if several() else 0


def first() -> bool:
    return number() == 0


def world() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if several() else 1


def several() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def on_this_machine(cfg: DictConfig) -> int:
    """The devices that `trainer` asks for; at least one."""
    asked = cfg.trainer.get("devices", 1)
    if isinstance(asked, list | ListConfig):
        return max(1, len(asked))
    if str(asked) in ALL:
        return len(visible_gpus()) or 1 if cfg.trainer.accelerator in ("auto", *GPU) else 1
    return max(1, int(asked)) if str(asked).isdecimal() else 1


def wanted(cfg: DictConfig) -> int:
    """The processes that a job of this configuration is shared among."""
    nodes = cfg.trainer.get("num_nodes", 1)
    return on_this_machine(cfg) * (nodes if isinstance(nodes, int) else 1)  # or it is refused yet


def is_sharded(cfg: DictConfig) -> bool:
    return _strategy(cfg) == "Sharded"


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
    if not gpus and on_this_machine(cfg) > (most := PROCESSES * (os.cpu_count() or 1)):
        return f"trainer.devices={asked} are as many processes on this machine; set {most} or fewer"
    highest = max(listed) if listed else on_this_machine(cfg) - 1
    if gpus and highest >= gpus:
        there = "is one GPU" if gpus == 1 else f"are {gpus} GPUs"
        return f"trainer.devices={asked}: there {there}; set trainer.devices={gpus} or fewer"
    if is_sharded(cfg) and wanted(cfg) == 1:
        return (
            "trainer=fsdp splits models up among several devices, and has one; set "
            "trainer.devices=2 or more, or trainer=auto"
        )
    if is_sharded(cfg) and OmegaConf.select(cfg, "student.lora.rank"):
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


def say(value: Value) -> Value:
    """What rank 0 says. All of them call this, in the same order; the others' value is ignored."""
    if not several():
        return value
    import torch.distributed as dist

    said: list[Any] = [value if first() else None]
    dist.broadcast_object_list(said, src=0)
    found: Value = said[0]
    return found


def together() -> None:
    """Waits until all have come here."""
    all_of(None)


def any_of(flag: bool) -> bool:
    """Whether it is true of any rank."""
    return max(all_of(flag))


def all_of(value: Value) -> list[Value]:
    """What each rank says, in their order."""
    if not several():
        return [value]
    import torch.distributed as dist

    said: list[Any] = [None] * world()
    dist.all_gather_object(said, value)
    return said


def join(cfg: DictConfig) -> None:
    """Meets the other ranks, unless that was done before."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu":
        devices, local = cfg.trainer.devices, int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(devices[local] if isinstance(devices, ListConfig) else local)
        backend = "cpu:gloo,cuda:nccl"  # so that what is on the processor need not move
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    atexit.register(_break_off)


def leave() -> None:
    """Parts from the other ranks, at the end of what all of them did."""
    import torch.distributed as dist

    together()  # one that goes ahead may close what another still reads from
    dist.destroy_process_group()


def _break_off() -> None:
    """Parts from the other ranks where this process ends before `leave`.

    PyTorch waits for what was begun with them, if not here then when Python ends. It never comes
    where one of them hangs, so that after a while this process ends without.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def take_srun_for_torchrun() -> None:
    """Gives srun's processes the variables that torchrun would, which all else here reads."""
    if several() or int(os.environ.get("SLURM_NTASKS", 1)) < 2 or "SLURM_PROCID" not in os.environ:
        return
    if "SLURM_STEP_ID" not in os.environ:  # inside an allocation, and not started by srun
        return
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ |= {
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "GROUP_RANK": str(slurm.node_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "LOCAL_WORLD_SIZE": os.environ.get("SLURM_NTASKS_PER_NODE", "1"),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
        "TORCHELASTIC_RUN_ID": os.environ["SLURM_JOB_ID"],
    }
