"""Every way in which ranks end."""

import json
import signal
import subprocess
import sys

import pytest

# Two ranks for each way to end, forked from a process that imports torch once. Prints the exit code
# of each, and whether it was still in the process group.
ENDS = """
import atexit, json, os, signal, sys, time
import torch, torch.distributed as dist
from lightning_distill.distributed import launcher, process_group
from lightning_distill.distributed.topology import Hardware

process_group.PATIENCE = 1.0

def at_the_end(rank):
    process_group.destroy_process_group()

def both_exit(rank):
    process_group.barrier()
    sys.exit(2)

def one_exits(rank):
    sys.exit(2) if rank else process_group.barrier()

def one_killed(rank):
    os.kill(os.getpid(), signal.SIGKILL) if rank else process_group.barrier()

def one_hangs(rank):
    if rank:
        time.sleep(90)
    dist.all_reduce(torch.ones(9), async_op=True)
    raise RuntimeError("while the other is waited for")

def play(way, rank, port, told):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }
    atexit.register(lambda: os.write(told, b"in" if dist.is_initialized() else b"left"))
    process_group.init_process_group(Hardware("cpu"))
    way(rank)
    sys.exit()

started, found = {}, {}
for way in (one_hangs, at_the_end, both_exit, one_exits, one_killed):
    port = launcher.free_port()
    for rank in range(2):
        hears, told = os.pipe()
        if not (pid := os.fork()):
            play(way, rank, port, told)
        os.close(told)
        started[pid] = way, rank, hears
while started:
    if len(started) == 1:
        os.kill(*started, signal.SIGKILL)
    pid, status = os.wait()
    way, rank, hears = started.pop(pid)
    said = os.waitstatus_to_exitcode(status), os.read(hears, 9).decode()
    found.setdefault(way.__name__, {})[rank] = said
print(json.dumps(found, sort_keys=True))
"""


@pytest.mark.slow
def test_ranks_leave_the_group_however_they_end():
    """Where one hangs during a collective, the other is ended after PATIENCE."""
    run = [sys.executable, "-c", ENDS]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    gone = [-signal.SIGKILL, ""]
    assert {way: [*both.values()] for way, both in json.loads(done.stdout).items()} == {
        "at_the_end": [[0, "left"], [0, "left"]],
        "both_exit": [[2, "left"], [2, "left"]],
        "one_exits": [[1, "left"], [2, "left"]],
        "one_killed": [[1, "left"], gone],
        "one_hangs": [[1, ""], gone],
    }
