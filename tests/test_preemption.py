"""A run that is asked to stop, once and twice."""

import json
import os
import shutil
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
    """Starts the command, and waits until it has trained for some steps. Returns its folder too."""

    def start(**env):
        where = [f"data.path={text_file}", f"paths.outputs={tmp_path}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_distill", *TINY, *LONG, *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **env},
        )
        until = time.monotonic() + 120
        while not (found := list(tmp_path.rglob("last.ckpt"))) and time.monotonic() < until:
            time.sleep(0.02)
        return process, found[0].parent.parent

    return start


def student(folder):
    found = json.loads((folder / "results.json").read_text())
    assert found["status"] == "finished"
    return found["student"]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(start, in_process, tmp_path):
    process, folder = start()
    same = [*LONG, "logger=csv", f"paths.outputs={tmp_path}"]
    process.send_signal(signal.SIGSTOP)
    in_process(*same)  # beside one that is alive
    process.send_signal(signal.SIGCONT)
    (undisturbed,) = set(folder.parent.iterdir()) - {folder}
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped by SIGINT at step" in said
    assert "The same command goes on from there" in said
    (tmp_path / "copy").mkdir()
    shutil.copytree(folder, tmp_path / "copy" / folder.name)
    assert "going on from step" in in_process(*same).stdout
    assert set(folder.parent.iterdir()) == {folder, undisturbed}
    assert student(folder) == student(undisturbed)
    shutil.rmtree(folder)
    shutil.move(tmp_path / "copy" / folder.name, folder.parent)
    assert "going on from step" not in in_process(*same, "trainer.resume=never").stdout
    assert len(list(folder.parent.iterdir())) == 3


def test_slurm_is_asked_to_start_a_job_again_that_it_warned(start, tmp_path):
    told = tmp_path / "told"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process, _ = start(SLURM_JOB_ID="12", PATH=path)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, said
    assert told.read_text().split() == ["requeue", "12"]
