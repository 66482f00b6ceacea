"""Runs a function in one process for each device of this machine.

Not by torch's `elastic_launch`, which (measured with torch 2.13) loses all results when a rank
aborts after it has returned, kills ranks 30 seconds after a signal though they still write a
checkpoint, ends the other ranks at the first failure before they can say what caused it, and leaves
its signal handlers in place.
"""

import ctypes
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any

from lightning_distill.distributed import process_group
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError, Stopped

log = logging.getLogger(__name__)

START_METHOD = "spawn"  # a forked process cannot use CUDA
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)  # which end a training after its next step
MAX_TRACEBACK = 20_000  # characters; a pipe holds 64 KiB
# How a rank ends, the most informative first: with a mistake that the user can correct, by a
# signal that it obeyed, with another exception, without a word (killed), or with a result.
KINDS = ("refused", "stopped", "crashed", "killed", "returned")


@dataclass(frozen=True)
class Outcome:
    kind: str  # one of KINDS
    value: Any = None  # a message, the signal's number, a traceback, None, or the result
    time: float = math.inf


@dataclass(frozen=True)
class Work:
    """What every rank receives."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    hardware: Hardware
    run_id: str
    set_up: Callable[[int], None]
    port: int


def launch(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    hardware: Hardware,
    run_id: str,
    set_up: Callable[[int], None],
) -> Any:
    """Calls function(*args) in all ranks, which share a process group, and returns rank 0's result.

    set_up: called first in each rank with its number, to configure logging. Everything is pickled.
    Raises ConfigError if a rank did, else Stopped if a signal ended the ranks, else RuntimeError
    with the traceback of the first rank that failed.
    """
    context: Any = get_context(START_METHOD)
    work = Work(function, args, hardware, run_id, set_up, free_port())
    pipes = [context.Pipe(duplex=False) for _ in range(hardware.local_devices)]
    ranks = [
        context.Process(target=_run_rank, args=(rank, work, sender))
        for rank, (_, sender) in enumerate(pipes)
    ]
    with _signals_forwarded(ranks) as received:
        try:
            for process in ranks:
                process.start()
            for _, sender in pipes:
                sender.close()  # so that the pipe closes when its rank ends
            _wait(ranks)
        except KeyboardInterrupt:  # which the terminal sends to the ranks too
            _stop(ranks, process_group.PATIENCE)
            raise
        finally:
            _stop(ranks, 0.0)
    outcomes = [_receive(receiver) for receiver, _ in pipes]
    return _result(outcomes, [process.exitcode for process in ranks], received)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def _signals_forwarded(ranks: list[Any]) -> Iterator[list[int]]:
    """Sends FORWARDED signals on to the ranks. Yields the list of those received."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        for process in _alive(ranks):
            os.kill(process.pid, number)

    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield received
        return
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _alive(ranks: list[Any]) -> list[Any]:
    return [process for process in ranks if process.pid is not None and process.is_alive()]


def _wait(ranks: list[Any]) -> None:
    """Returns when all ranks have ended, or PATIENCE seconds after the first failure."""
    deadline = math.inf
    while alive := _alive(ranks):
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        if not wait_for_any([process.sentinel for process in alive], timeout=left):
            return
        if deadline == math.inf and any(process.exitcode for process in ranks):
            deadline = time.monotonic() + process_group.PATIENCE


def _stop(ranks: list[Any], patience: float) -> None:
    """Waits some seconds for the ranks to end, then terminates, then kills those that are left."""
    deadline = time.monotonic() + patience
    for action in ("join", "terminate", "kill"):
        for process in _alive(ranks):
            if action != "join":
                getattr(process, action)()
            process.join(max(0.1, deadline - time.monotonic()))


def _receive(pipe: Connection) -> Outcome:
    try:
        outcome: Outcome = pipe.recv()
    except EOFError:
        return Outcome("killed")
    return outcome


def _result(outcomes: list[Outcome], exit_codes: list[int | None], received: list[int]) -> Any:
    count = len(outcomes)
    failed = [rank for rank, outcome in enumerate(outcomes) if outcome.kind != "returned"]
    for rank, code in enumerate(exit_codes):
        if code and rank not in failed:  # as by a library that is unloaded in the wrong order
            log.warning("rank %s of %s returned, then ended with exit code %s", rank, count, code)
    if not failed:
        return outcomes[0].value
    first = min(failed, key=lambda rank: (KINDS.index(outcomes[rank].kind), outcomes[rank].time))
    outcome = outcomes[first]
    if outcome.kind == "refused":
        raise ConfigError(outcome.value)
    if outcome.kind == "stopped" or received:
        raise Stopped(received[0] if received else outcome.value)
    reason = f"rank {first} of {count} failed (exit code {exit_codes[first]})"
    raise RuntimeError(f"{reason}\n{outcome.value or ''}")


def _run_rank(rank: int, work: Work, pipe: Connection) -> None:
    """The whole life of one rank."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the command
    os.environ |= _environment(rank, work)
    work.set_up(rank)

    def send(kind: str, value: Any) -> None:
        pipe.send(Outcome(kind, value, time.time()))

    try:
        process_group.init_process_group(work.hardware)
        result = work.function(*work.args)
        send("returned", result if rank == 0 else None)
        process_group.destroy_process_group()
    except Stopped as stop:
        send("stopped", stop.number)
        sys.exit(stop.exit_code)
    except ConfigError as error:
        send("refused", str(error))
        sys.exit(2)
    except Exception:
        send("crashed", traceback.format_exc()[-MAX_TRACEBACK:])
        sys.exit(1)


def _environment(rank: int, work: Work) -> dict[str, str]:
    """The variables that torchrun sets."""
    count = work.hardware.local_devices
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(work.port),
        "TORCHELASTIC_RUN_ID": work.run_id,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
