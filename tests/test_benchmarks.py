"""`make bench` on a workload of nothing: that every contender still runs, not how fast."""

import json
import subprocess
import sys

import pytest

from benchmarks.contenders import CONTENDERS

pytestmark = pytest.mark.slow


FIRST = ("ours", "trl", "cached_topk")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.long) for n in CONTENDERS]
)
def test_every_contender_makes_its_steps(name):
    workload = {"vocabulary": 97, "length": 16, "sequences": 2, "steps": 2, "cores": 1}
    options = [f"--{key}={value}" for key, value in workload.items()]
    command = [sys.executable, "-m", "benchmarks.contenders", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens_per_second"] == pytest.approx(32 / found["seconds"])
    assert found["peak"] > found["added"] >= 0
    assert found["flops"] > 1e8
