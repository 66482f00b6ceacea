"""The processes that a job is shared among: one for each device, all walking through the pipeline.

Rank 0 decides, writes and is listened to; the others hear from it what is to be done. Nothing here
imports torch before there are several.
"""

import atexit
import faulthandler
import os
from datetime import timedelta
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig

# A rank may wait for as long as rank 0 needs to tokenize a large text. That one of them has died
# is noticed by who started them.
LONGEST_WAIT = timedelta(days=7)
PATIENCE = 20.0  # seconds that ranks have to end in once one of them has failed

Value = TypeVar("Value")


def rank() -> int:
    """This process's rank; 0 where it is alone."""
    return int(os.environ.get("RANK", 0)) if is_distributed() else 0


def is_rank_zero() -> bool:
    return rank() == 0


def world_size() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def is_distributed() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def broadcast(value: Value) -> Value:
    """What rank 0 says. All of them call this, in the same order; the others' value is ignored."""
    if not is_distributed():
        return value
    import torch.distributed as dist

    said: list[Any] = [value if is_rank_zero() else None]
    dist.broadcast_object_list(said, src=0)
    found: Value = said[0]
    return found


def barrier() -> None:
    """Waits until all have come here."""
    all_gather(None)


def any_rank(flag: bool) -> bool:
    """Whether it is true of any rank."""
    return max(all_gather(flag))


def all_gather(value: Value) -> list[Value]:
    """What each rank says, in their order."""
    if not is_distributed():
        return [value]
    import torch.distributed as dist

    said: list[Any] = [None] * world_size()
    dist.all_gather_object(said, value)
    return said


def init_process_group(cfg: DictConfig) -> None:
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


def destroy_process_group() -> None:
    """Parts from the other ranks, at the end of what all of them did."""
    import torch.distributed as dist

    barrier()  # one that goes ahead may close what another still reads from
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


def adopt_srun_environment() -> None:
    """Gives srun's processes the variables that torchrun would, which all else here reads."""
    if (
        is_distributed()
        or int(os.environ.get("SLURM_NTASKS", 1)) < 2
        or "SLURM_PROCID" not in os.environ
    ):
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
