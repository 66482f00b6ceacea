"""The processes of one job: a rank for each device, which all execute the same pipeline.

Rank 0 decides, writes files and logs. All functions work without a process group too, where this
process is the only rank; torch is then not imported.
"""

import atexit
import faulthandler
import os
from datetime import timedelta
from typing import Any, TypeVar

from lightning_distill.distributed.topology import Hardware

# A rank may wait for as long as rank 0 needs to tokenize a large text. The launcher notices when a
# rank has died.
TIMEOUT = timedelta(days=7)
PATIENCE = 20.0  # seconds that ranks have to end in once one of them has failed

Value = TypeVar("Value")


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if is_distributed() else 0


def is_rank_zero() -> bool:
    return rank() == 0


def world_size() -> int:
    """The number of ranks on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def is_distributed() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def broadcast(value: Value) -> Value:
    """Rank 0's value, in all ranks. Like every collective, called by all ranks in one order."""
    if not is_distributed():
        return value
    import torch.distributed as dist

    values: list[Any] = [value if is_rank_zero() else None]
    dist.broadcast_object_list(values, src=0)
    result: Value = values[0]
    return result


def barrier() -> None:
    """Returns when all ranks have called it."""
    all_gather(None)


def any_rank(flag: bool) -> bool:
    """Whether the flag is true in any rank."""
    return max(all_gather(flag))


def all_gather(value: Value) -> list[Value]:
    """The values of all ranks, in the order of the ranks."""
    if not is_distributed():
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def init_process_group(hardware: Hardware) -> None:
    """Joins the other ranks, unless that was done before."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available() and hardware.accelerator != "cpu":
        indices, local = hardware.device_indices, int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(indices[local] if indices else local)
        backend = "cpu:gloo,cuda:nccl"  # tensors on the CPU need not be moved
    dist.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(_destroy_at_exit)


def destroy_process_group() -> None:
    """Leaves the other ranks after all have finished their work."""
    import torch.distributed as dist

    barrier()  # a rank that goes ahead may close what another still reads from
    dist.destroy_process_group()


def _destroy_at_exit() -> None:
    """Leaves the other ranks where this process ends before `destroy_process_group`.

    PyTorch waits for pending collectives, here or when Python ends, and waits forever where another
    rank hangs. Then this process ends after PATIENCE seconds.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def adopt_srun_environment() -> None:
    """Sets the variables that torchrun would set, where srun has started several processes."""
    if (
        is_distributed()
        or int(os.environ.get("SLURM_NTASKS", 1)) < 2
        or "SLURM_PROCID" not in os.environ
        or "SLURM_STEP_ID" not in os.environ  # inside an allocation, but not started by srun
    ):
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
