"""`stage=sync` on runs that a real offline W&B has written, against a server on this machine."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from lightning_distill.tracking import wandb_sync
from lightning_distill.tracking.wandb_run import FINISHED

pytestmark = pytest.mark.slow
WRITE = """
import sys, time, wandb
from pathlib import Path
from lightning_distill.tracking import wandb_run
for run_id, first in (("interrupted", 0), ("interrupted", 50), ("other", 0)):
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(project="p", dir=sys.argv[1], id=run_id, mode="offline", settings=settings)
    for step in range(first, first + 50):
        run.log({"x": step}, step=step)
    wandb_run.finish(run, {})
    time.sleep(1.1)  # folders are named by the second
"""


@pytest.fixture
def outputs(tmp_path):
    """Two folders of one run, and one of another."""
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], check=True)
    return tmp_path


def interrupt(folder):
    """Leave the folder as a kill would: half a record at the end, and no mark."""
    (file,) = folder.glob("*.wandb")
    os.truncate(file, file.stat().st_size // 2)
    (folder / FINISHED).unlink()


def steps(server, run_id):
    return [json.loads(line)["x"] for line in server.history[run_id]]


def test_all_offline_runs_are_uploaded_once(outputs, command, wandb_server):
    server, key = wandb_server
    done = command("stage=sync", f"paths.outputs={outputs}", **key)
    assert "uploaded 3 offline runs" in done.stdout
    assert steps(server, "interrupted") == list(range(100))
    assert steps(server, "other") == list(range(50))
    assert "no offline run" in command("stage=sync", f"paths.outputs={outputs}", **key).stdout


def test_a_killed_run_is_uploaded_with_what_it_logged_after_it_was_resumed(
    outputs, command, wandb_server
):
    server, key = wandb_server
    killed, *_ = wandb_sync.offline_runs(outputs)
    interrupt(killed)
    command("stage=sync", f"paths.outputs={outputs}", **key)
    uploaded = steps(server, "interrupted")
    count = len(uploaded) - 50
    assert 0 < count < 50
    assert uploaded == [*range(count), *range(50, 100)]
    assert wandb_sync.offline_runs(outputs) == []


def test_a_run_that_is_still_written_is_left_for_later(outputs, command, wandb_server):
    server, key = wandb_server
    *_, running = wandb_sync.offline_runs(outputs)
    interrupt(running)
    done = command("stage=sync", f"paths.outputs={outputs}", **key)
    assert "1 offline runs are still being written" in done.stdout
    assert set(server.history) == {"interrupted"}
    assert wandb_sync.offline_runs(outputs) == [running]
    (file,) = running.glob("*.wandb")
    old = time.time() - 2 * wandb_sync.IDLE_SECONDS
    os.utime(file, (old, old))
    assert wandb_sync.has_ended(running, [running])


def test_without_a_key_or_a_server_a_line_says_so(outputs, in_process, monkeypatch):
    empty = outputs / "wandb" / "offline-run-20200101_000000-00000000"
    empty.mkdir()
    (empty / "run-00000000.wandb").write_bytes(b":W&B\0\0\0")
    settings = ("stage=sync", f"paths.outputs={outputs}")
    (line,) = in_process(*settings, expect=2).stderr.strip().splitlines()
    assert re.search("^lightning-distill: 3 offline runs .* W&B key", line)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (line,) = in_process(*settings, expect=2).stderr.strip().splitlines()
    assert "W&B's server http://127.0.0.1:9 does not answer" in line
