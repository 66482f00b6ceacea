"""Runs the function of `stage=`, in one process for each device.

On one machine the command starts the processes itself, anew for each job of a sweep. On several
machines torchrun or srun starts them, each with the whole command.
"""

import logging
import logging.config
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_distill.activity import activity
from lightning_distill.config.messages import explain
from lightning_distill.config.settings import Settings
from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.distributed import process_group
from lightning_distill.distributed.launcher import launch
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError
from lightning_distill.imports import import_quietly
from lightning_distill.sweeps.job import Job

log = logging.getLogger(__name__)


def run_stage(settings: Settings, job: Job) -> Any:
    """The results of the stage. Raises ConfigError for devices that this machine lacks."""
    if not find_stage(settings["stage"]).distributed:
        return stage_function(settings)(settings, job)
    wanted = Hardware.from_settings(settings)
    if problem := wanted.problem():  # said once, before there are several processes
        raise ConfigError(f"{problem}.")
    if process_group.is_distributed():
        _check_world_size(wanted)
        process_group.init_process_group(wanted)
        process_group.broadcast((settings, job))
        results = stage_function(settings)(settings, job)
        process_group.destroy_process_group()
        return results
    if wanted.num_devices == 1:
        return _with_activity(settings, job)
    if wanted.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={wanted.num_nodes} needs this command started on every machine, "
            "once for each device, by torchrun or srun. scripts/multi_node.sh is an example."
        )
    return launch(
        _run_in_rank, (settings, job), wanted, job.key, partial(_set_up_logging, _logging())
    )


def follow_rank_zero(settings: Settings) -> None:
    """What the other ranks of torchrun and srun do: rank 0's job, if it comes to have one."""
    _set_up_logging(_logging(), process_group.rank())
    if not find_stage(settings["stage"]).distributed:
        return
    process_group.init_process_group(Hardware.from_settings(settings))
    if (received := process_group.broadcast(None)) is not None:
        settings, job = received
        stage_function(settings)(settings, job)
        process_group.destroy_process_group()


def overrides_of_followers() -> list[str]:
    """Overrides with which ranks other than 0 write no folder of their own."""
    nowhere = tempfile.mkdtemp(prefix="lightning_distill-rank-")
    folders = (f"hydra.{kind}.dir='{nowhere}'" for kind in ("run", "sweep"))
    return [*folders, "hydra.output_subdir=null"]


def stage_function(settings: Settings) -> Callable[[Settings, Job], Any]:
    stage = find_stage(settings["stage"])
    if stage.distributed and "torch" not in sys.modules:
        log.info("importing torch, lightning and transformers")
    module, _, name = stage.entry.rpartition(".")
    is_own = module.startswith("lightning_distill.")
    with activity("importing torch, lightning and transformers"):
        imported = import_quietly(module) if is_own else import_module(module)
    function: Callable[[Settings, Job], Any] = getattr(imported, name)
    return function


def _with_activity(settings: Settings, job: Job) -> Any:
    function = stage_function(settings)
    with activity("working"):
        return function(settings, job)


def _check_world_size(wanted: Hardware) -> None:
    if wanted.num_devices != process_group.world_size():
        raise ConfigError(
            f"{process_group.world_size()} processes were started, and trainer.devices="
            f"{wanted.devices} on trainer.num_nodes={wanted.num_nodes} are {wanted.num_devices}. "
            "Start one process for each device of each machine."
        )


def _run_in_rank(settings: Settings, job: Job) -> Any:
    """Raises ConfigError for every mistake that the user can correct."""
    try:
        if process_group.is_rank_zero():
            return _with_activity(settings, job)
        return stage_function(settings)(settings, job)
    except Exception as error:
        if reason := explain(error):
            raise ConfigError(reason) from error
        raise


def _logging() -> Settings:
    """The settings of `logging.config` that this command's jobs use."""
    settings: Any = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return dict(settings)


def _set_up_logging(settings: Settings, rank: int) -> None:
    """Rank 0 logs as the command does; the other ranks log errors only."""
    if rank == 0:
        logging.config.dictConfig(settings)
    else:
        logging.basicConfig(level=logging.ERROR, format=f"rank {rank}: %(message)s", force=True)
