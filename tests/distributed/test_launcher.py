"""A function in several processes: its result, and every way to fail."""

import os
import signal
import time

import pytest

from lightning_distill.distributed import process_group
from lightning_distill.distributed.launcher import launch
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError, Stopped

pytestmark = pytest.mark.slow


def in_two_ranks(function, *args):
    return launch(function, args, Hardware("cpu", devices=2), "run", silence)


def silence(rank):
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)


def gather(number):
    return [number, *process_group.all_gather(process_group.rank())]


def refuse(key):
    if process_group.rank():
        raise ConfigError(f"{key} is wrong.")
    process_group.barrier()  # fails too, for rank 1 is gone


def be_killed():
    if process_group.rank():
        os.kill(os.getpid(), signal.SIGKILL)
    process_group.barrier()


def stop_on_signal():
    received = []
    signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    process_group.barrier()
    if process_group.is_rank_zero():
        os.kill(os.getppid(), signal.SIGUSR1)  # to the command only
    while not received:
        time.sleep(0.05)
    raise Stopped(received[0])


def test_launch_returns_rank_0s_result_of_ranks_in_one_group():
    assert in_two_ranks(gather, 7) == [7, 0, 1]


def test_a_mistake_of_the_user_comes_before_failures_that_follow_from_it():
    with pytest.raises(ConfigError, match=r"^a\.key is wrong\.$"):
        in_two_ranks(refuse, "a.key")


def test_a_killed_rank_ends_the_others():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank \d of 2 failed"):
        in_two_ranks(be_killed)
    assert time.monotonic() - start < 120


def test_a_signal_reaches_every_rank_and_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped) as stopped:
        in_two_ranks(stop_on_signal)
    assert stopped.value.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before
