"""`make bench` on a workload of nothing: that every contender still runs, not how fast; and that
Liger's loss, where it is installed, is ours."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.contenders import CONTENDERS, Workload, liger_is_missing, liger_loss
from benchmarks.startup import CASES
from lightning_distill.constants import IGNORED
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective
from lightning_distill.models.output_head import find_head
from lightning_distill.models.predictions import Predictions

pytestmark = pytest.mark.slow


FIRST = ("ours",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.long) for n in CONTENDERS]
)
def test_every_contender_makes_its_steps(name):
    if name == "liger" and (missing := liger_is_missing()):
        pytest.skip(missing)
    workload = {"vocabulary": 97, "length": 16, "sequences": 2, "steps": 2, "cores": 1}
    options = [f"--{key}={value}" for key, value in workload.items()]
    command = [sys.executable, "-m", "benchmarks.contenders", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens_per_second"] == pytest.approx(32 / found["seconds"])
    assert found["peak"] > found["added"] >= 0
    assert found["flops"] > 1e8


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ligers_loss_is_ours_without_the_square_of_the_temperature(temperature):
    pytest.importorskip("liger_kernel")
    work = Workload(vocabulary=97, length=16, sequences=2, steps=1)
    student, teacher = work.student.double(), work.teacher.double()
    batch = {name: x.cpu() for name, x in next(work.batches()).items()}
    labels = batch["labels"] = batch["labels"].clone()
    labels[0, 5:9] = IGNORED
    said = [
        Predictions(one.model(batch["input_ids"]).last_hidden_state[:, :-1], find_head(one), 97)
        for one in (student, teacher)
    ]
    objective = Objective(forward_kl, temperature, 1.0, 0.0, "labels")
    terms = objective.terms(said[0], said[1:], labels[:, 1:])
    ours = terms.total / terms.tokens / temperature**2
    theirs = liger_loss(student, teacher, temperature, compiled=False)(batch)
    assert float(theirs) == pytest.approx(float(ours), rel=1e-6)  # which they sum in 32 bits
    weights = list(student.parameters())
    both = [torch.autograd.grad(loss, weights) for loss in (ours, theirs)]
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-11, atol=1e-16)


def test_start_up_times_are_measured():
    command = [sys.executable, "-m", "benchmarks.startup", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert "1 rounds" in head
    assert [line.partition("  ")[0] for line in lines] == list(CASES)
