"""A job in as many processes as `trainer` asks for.

The command starts those of its machine itself, for each job of a sweep anew; torchrun or srun start
those of several machines, each with the whole command.
"""

import ctypes
import logging
import logging.config
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import wait as wait_for
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lightning_distill.config.messages import explain
from lightning_distill.distributed import process_group
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError, Stopped
from lightning_distill.stages import STAGES

log = logging.getLogger(__name__)

TOGETHER = ("distill", "teacher", "transfer", "evaluate")  # stages that all devices take part in
LONGEST = 20_000  # characters of a traceback, which must fit into a pipe
STOPS = (signal.SIGTERM, signal.SIGUSR1)  # which end a training at its next step
WORST = ("refused", "stopped", "broken", "")  # of what ranks say when they end: the first counts


def run(cfg: DictConfig, job: Any) -> Any:
    """The stage's function, in this process or in as many as `trainer` asks for."""
    settings: Any = OmegaConf.to_container(resolved(cfg))
    hardware = Hardware.from_settings(settings)
    if cfg.stage in TOGETHER and (problem := hardware.problem()):
        raise ConfigError(f"{problem}.")  # before there are processes that would all say so
    count = hardware.num_devices if cfg.stage in TOGETHER else 1
    if process_group.is_distributed() and cfg.stage in TOGETHER:
        if count != process_group.world_size():
            raise ConfigError(
                f"{process_group.world_size()} processes were started, and trainer.devices="
                f"{cfg.trainer.devices} on trainer.num_nodes={cfg.trainer.get('num_nodes', 1)} "
                f"are {count}. Start one a device on each machine."
            )
        process_group.init_process_group(cfg)
        process_group.broadcast((resolved(cfg), job))
        results = function_of(cfg)(cfg, job)
        process_group.destroy_process_group()
        return results
    if count == 1:
        return function_of(cfg)(cfg, job)
    if (nodes := int(cfg.trainer.get("num_nodes", 1))) > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} needs this command started on every machine, once for each "
            "device, by torchrun or srun. scripts/multi_node.sh is an example."
        )
    return start(count, cfg, job)


def function_of(cfg: DictConfig) -> Callable[[DictConfig, Any], Any]:
    module, name = STAGES[cfg.stage].rsplit(".", 1)
    found: Callable[[DictConfig, Any], Any] = getattr(
        import_module(f"lightning_distill.{module}"), name
    )
    return found


def resolved(cfg: DictConfig) -> DictConfig:
    """With what follows from this command's time and name as it is here."""
    found = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    OmegaConf.set_struct(found, True)
    assert isinstance(found, DictConfig)
    return found


@dataclass(frozen=True)
class _Told:
    """What a rank must know of the command."""

    cfg: DictConfig
    job: Any
    hydra: Any
    count: int
    port: int


def start(count: int, cfg: DictConfig, job: Any) -> Any:
    """Runs a job in so many processes of this machine. Returns what it would return here.

    Raises what the first of them that failed has met, as far as it can be said in words.
    """
    context = get_context("spawn")  # a forked process has no GPU
    heard, ends = zip(*(context.Pipe(duplex=False) for _ in range(count)), strict=True)
    told = _Told(resolved(cfg), job, HydraConfig.get(), count, _free_port())
    started = [
        context.Process(target=_rank, args=(rank, told, end)) for rank, end in enumerate(ends)
    ]
    main = threading.current_thread() is threading.main_thread()
    handed: list[int] = []
    signals = {one: signal.signal(one, _hand_on(started, handed)) for one in STOPS if main}
    try:
        for rank in started:
            rank.start()
        for end in ends:
            end.close()  # only the rank's own is left open, and closes with it
        _watch(started)
    except KeyboardInterrupt:  # which a terminal has sent to them too
        _end(started, process_group.PATIENCE)
        raise
    finally:
        for one, before in signals.items():
            signal.signal(one, before)
        _end(started, 0.0)
    results, failures = None, []
    for number, (rank, end) in enumerate(zip(started, heard, strict=True)):
        kind, value, when = _last_words(end)
        if kind == "results":
            results = value if number == 0 else results
            if rank.exitcode:  # as by a library that is closed in the wrong order
                said = "rank %s of %s had done its part, and ended with exit code %s"
                log.warning(said, number, count, rank.exitcode)
        else:
            failures.append((WORST.index(kind), when, number, value, rank.exitcode))
    if not failures:
        return results
    # What the user can mend, before what else broke because of it.
    worst, _, number, value, code = min(failures, key=lambda failure: failure[:2])
    if WORST[worst] == "refused":
        raise ConfigError(value)
    if WORST[worst] == "stopped" or handed:
        raise Stopped(handed[0] if handed else value)
    raise RuntimeError(f"rank {number} of {count} failed (exit code {code})\n{value or ''}")


def _watch(started: list[Any]) -> None:
    """Until all have ended, or some time after the first that ended badly."""
    alive, deadline = list(started), None
    while alive:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not wait_for([rank.sentinel for rank in alive], timeout=left):
            return
        for rank in [rank for rank in alive if not rank.is_alive()]:
            alive.remove(rank)
            if rank.exitcode and deadline is None:
                deadline = time.monotonic() + process_group.PATIENCE


def _end(started: list[Any], patience: float) -> None:
    deadline = time.monotonic() + patience
    for end in ("wait", "terminate", "kill"):
        for rank in started:
            if rank.pid is not None and rank.is_alive():
                if end != "wait":
                    getattr(rank, end)()
                rank.join(max(0.1, deadline - time.monotonic()))


def _hand_on(started: list[Any], handed: list[int]) -> Callable[..., None]:
    def hand_on(number: int, _: Any) -> None:
        handed.append(number)
        for rank in started:
            if rank.pid is not None and rank.is_alive():
                os.kill(rank.pid, number)

    return hand_on


def _last_words(end: Any) -> tuple[str, Any, float]:
    """How a rank has ended, with what, and when; nothing where it was killed."""
    try:
        found: tuple[str, Any, float] = end.recv()
    except EOFError:
        return "", None, math.inf
    return found


def _rank(rank: int, told: _Told, end: Any) -> None:
    """One process of a job, from its beginning to its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: none outlives the command
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(told.count),
        "LOCAL_WORLD_SIZE": str(told.count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(told.port),
        "TORCHELASTIC_RUN_ID": told.job.key,
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // told.count))
        ),
    }

    hydra: Any = OmegaConf.create({"hydra": told.hydra})
    HydraConfig.instance().cfg = hydra
    listen(told.hydra, rank)
    try:
        process_group.init_process_group(told.cfg)
        end.send(("results", function_of(told.cfg)(told.cfg, told.job), time.time()))
        process_group.destroy_process_group()
    except Stopped as stop:
        end.send(("stopped", stop.number, time.time()))
        sys.exit(stop.exit_code)
    except Exception as error:
        reason = explain(error)
        kind = "refused" if reason else "broken"
        end.send((kind, reason or traceback.format_exc()[-LONGEST:], time.time()))
        sys.exit(2 if reason else 1)


def listen(hydra: Any, rank: int) -> None:
    """Rank 0's lines go where the command's do; of the others only what went wrong is heard."""
    if rank == 0:
        settings = OmegaConf.to_container(hydra.job_logging, resolve=True)
        assert isinstance(settings, dict)
        logging.config.dictConfig({str(key): value for key, value in settings.items()})
    else:
        logging.basicConfig(level=logging.ERROR, format=f"rank {rank}: %(message)s", force=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def keep_to_itself() -> list[str]:
    """Overrides with which a rank other than 0 leaves no folder of its own."""
    nowhere = tempfile.mkdtemp(prefix="lightning_distill-rank-")
    folders = (f"hydra.{kind}.dir='{nowhere}'" for kind in ("run", "sweep"))
    return [*folders, "hydra.output_subdir=null"]


def follow(cfg: DictConfig) -> None:
    """What a rank other than 0 does for a job: what rank 0 says, or nothing."""
    listen(HydraConfig.get(), process_group.rank())
    if cfg.stage not in TOGETHER:
        return
    process_group.init_process_group(cfg)
    if (told := process_group.broadcast(None)) is not None:
        theirs, job = told
        function_of(theirs)(theirs, job)
        process_group.destroy_process_group()
