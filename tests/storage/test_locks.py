import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from lightning_distill.storage import locks
from lightning_distill.storage.locks import is_held, locked

HOLD = """
import socket, sys, time
socket.gethostname = lambda: sys.argv[2]
from pathlib import Path
from lightning_distill.storage import locks
locks.LEASE = 1.5
with locks.locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(file, host, seconds):
    """A process that holds the lock, on a machine of that name."""
    command = [sys.executable, "-c", HOLD, str(file), host, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_waiting_process_logs_the_lock_and_its_holder(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(locks, "LEASE", 1.5)
    process = hold(tmp_path / "lock", "elsewhere", 3)
    with locked(tmp_path / "lock", "the teacher 12ab"):
        assert process.wait() == 0  # longer than a lease, and held all the time
    assert (
        f"waiting for the teacher 12ab, which is in use by process {process.pid} on elsewhere"
        in caplog.text
    )


@pytest.mark.parametrize("host", ["elsewhere", os.uname().nodename])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, monkeypatch, host):
    monkeypatch.setattr(locks, "LEASE", 1.5)
    process = hold(tmp_path / "lock", host, 100)
    process.kill()
    process.wait()
    start = time.monotonic()
    with locked(tmp_path / "lock", "it") as check:
        check()
    waited = time.monotonic() - start
    assert waited > 1.5 if host == "elsewhere" else waited < 1.5


def test_an_empty_lock_file_of_a_dead_process_is_taken_over(tmp_path):
    """As it is left by a kill between the two calls."""
    (tmp_path / "lock").touch()
    with locked(tmp_path / "lock", "it") as check:
        check()
    (tmp_path / "lock").touch()
    assert not is_held(tmp_path / "lock")


@pytest.mark.parametrize("other", ["link", "pipe"])
def test_a_link_or_pipe_in_place_of_a_lock_is_not_written_to(tmp_path, other):
    (tmp_path / "mine").touch()
    if other == "link":
        (tmp_path / "lock").symlink_to(tmp_path / "mine")
    else:
        os.mkfifo(tmp_path / "lock")
    assert is_held(tmp_path / "lock")
    assert (tmp_path / "mine").read_bytes() == b""


def test_a_process_that_writes_its_name_late_keeps_its_lock(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(locks, "LEASE", 1.5)
    file = tmp_path / "lock"
    holder = hold(file, os.uname().nodename, 5)
    name = file.read_bytes()
    os.truncate(file, 0)

    def write_late():
        with file.open("r+b") as stream:
            stream.write(name)

    threading.Timer(1.0, write_late).start()
    with locked(file, "it"):
        assert holder.wait() == 0
    assert f"waiting for it, which is in use by process {holder.pid} on" in caplog.text


def test_a_newline_after_the_name_does_not_release_the_lock(tmp_path):
    with locked(tmp_path / "lock", "it") as check:
        with (tmp_path / "lock").open("a") as stream:
            stream.write("\n")
        assert is_held(tmp_path / "lock")
        check()
    assert not (tmp_path / "lock").exists()
