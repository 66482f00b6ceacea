"""Which GPUs there are, and which process of a sweep has which."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_distill.distributed.gpus import visible_gpus

HOLD = (
    "import os, sys; from lightning_distill.distributed.gpus import take_gpu; "
    "take_gpu(int(sys.argv[1]));"
    "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("0,1", ["0", "1"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]), ("", []), ("1,-1,2", ["1"])],
)
def test_visible_gpus_are_those_that_cuda_sees(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == gpus


def test_without_cuda_visible_devices_all_gpus_count(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-a)'\necho '  MIG 1g.18gb Device 0: (UUID: b)'\n"
        "echo 'GPU 1: H200 (UUID: GPU-c)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert visible_gpus() == []


@pytest.fixture
def holder(tmp_path):
    """Starts a process that takes a GPU, says which, and holds it until it is killed."""
    started = []

    def start(jobs_per_gpu):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", HOLD, str(jobs_per_gpu)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_each_process_has_a_gpu_and_the_next_waits_until_one_dies(holder):
    first, second = holder(1), holder(1)
    gpus = [first.stdout.readline().strip(), second.stdout.readline().strip()]
    assert sorted(gpus) == ["0", "1"]
    third = holder(1)
    with ThreadPoolExecutor() as pool:
        line = pool.submit(third.stdout.readline)
        time.sleep(1.5)
        assert not line.done()
        second.kill()
        assert line.result(timeout=20).strip() == gpus[1]


def test_several_share_a_gpu_once_every_gpu_has_one(holder):
    gpus = []
    for _ in range(4):
        gpus.append(holder(2).stdout.readline().strip())
    assert gpus == ["0", "1", "0", "1"]
