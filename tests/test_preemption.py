"""A run that is asked to stop, once and twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TINY

pytestmark = pytest.mark.slow

LONG = ["student.max_steps=300", "teacher.max_steps=5", "checkpoint_every_n_steps=40"]


@pytest.fixture
def start(text_file, tmp_path):
    """Starts the command in a folder of its own, and waits until it has trained for some steps."""

    def start(folder, **env):
        where = [f"data.path={text_file}", f"paths.outputs={tmp_path}", f"hydra.run.dir={folder}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_distill", *TINY, *LONG, *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **env},
        )
        until = time.monotonic() + 120
        while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.02)
        return process

    return start


def student(folder):
    found = json.loads((folder / "results.json").read_text())
    assert found["status"] == "finished"
    return found["student"]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(start, command, tmp_path):
    folder, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    process = start(folder)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped by SIGINT at step" in said
    assert "The same command goes on from there" in said
    same = [*LONG, f"paths.outputs={tmp_path}"]
    assert "going on from step" in command(*same, f"hydra.run.dir={folder}").stdout
    command(*same, f"hydra.run.dir={undisturbed}")
    assert student(folder) == student(undisturbed)


def test_slurm_is_asked_to_start_a_job_again_that_it_warned(start, tmp_path):
    told = tmp_path / "told"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = start(tmp_path / "run", SLURM_JOB_ID="12", PATH=path)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, said
    assert told.read_text().split() == ["requeue", "12"]
