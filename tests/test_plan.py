"""What a sweep is said to take, against what it then takes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_distill.cli import app
from lightning_distill.config.catalog import CONF
from lightning_distill.planning.dry_run import Training
from lightning_distill.planning.plan import cost_class

SWEEP = [
    "hydra.mode=MULTIRUN",
    "sweep.name=planned",
    "checkpoint_every_n_steps=9",
    "transfer=cached",
    "loss.alpha=0,1",
    "loss.temperature=1,2",
]
STEPS, BATCH, LENGTH = 12, 4, 32  # of TINY


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("plan") / "outputs"


@pytest.fixture(scope="module")
def plan(in_process, outputs):
    """The plan of a sweep of which nothing is there, and what it printed."""
    said = in_process(*SWEEP, "stage=plan", f"paths.outputs={outputs}").stdout
    return plans(outputs), said


@pytest.fixture(scope="module")
def done(in_process, outputs, plan):
    """The outputs after that sweep was run."""
    in_process(*SWEEP, "logger=csv", f"paths.outputs={outputs}")
    return outputs


def plans(outputs):
    """By what each job has of alpha and temperature; and the folder of each."""
    found = {}
    for file in (outputs / "plan").rglob("plan.json"):
        one = json.loads(file.read_text())
        own = [o.split("=")[1] for o in one["overrides"] if o.startswith(("loss.a", "loss.t"))]
        found[tuple(own)] = one | {"folder": file.parent.name}
    return found


def size(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_a_plan_leaves_nothing_but_itself_and_the_tokens(in_process, tmp_path):
    in_process(*SWEEP, "stage=plan", f"paths.outputs={tmp_path}")
    assert {f.name for f in tmp_path.iterdir()} == {"artifacts", "plan"}
    assert {f.name for f in (tmp_path / "artifacts").iterdir()} == {"tokenizer", "tokens"}
    assert not list(tmp_path.rglob("results.json"))
    assert {f.name for f in tmp_path.rglob("*.safetensors")} == {"tokens.safetensors"}


def test_a_plan_tells_tokens_and_what_is_shared(plan):
    found, said = plan
    assert len(found) == 4
    assert all(one["tokens"] == STEPS * BATCH * LENGTH for one in found.values())
    assert "4 jobs, 3 to run" in said  # the temperature of a baseline does not matter
    assert "as loss.alpha=0,loss.temperature=1" in said
    assert said.count("teacher ") == said.count("predictions ") == 1
    assert "271 blocks" in said


def test_a_plan_tells_the_bytes_that_the_sweep_then_takes(plan, done):
    found, _ = plan
    one = found["1", "2"]
    left = size(done / "sweeps" / "planned" / one["folder"])
    assert one["bytes"] == pytest.approx(left, rel=0.1)
    assert (done / "sweeps" / "planned" / one["folder"] / "checkpoints" / "last.ckpt").exists()
    shared = {one["what"]: one["bytes"] for one in one["shared"]}
    for what, folder in (("teacher", "teacher"), ("predictions", "predictions")):
        (there,) = (f for f in (done / "artifacts" / folder).iterdir() if f.is_dir())
        assert shared[what] == pytest.approx(size(there), rel=0.1)


def test_a_plan_of_what_is_finished_has_nothing_to_run(in_process, plan, done):
    said = in_process(*SWEEP, "stage=plan", f"paths.outputs={done}").stdout
    assert "4 jobs, 0 to run" in said
    assert "nothing to run" in said
    more = [*SWEEP[:-1], "loss.temperature=1,2,4"]
    said = in_process(*more, "stage=plan", f"paths.outputs={done}").stdout
    assert "6 jobs, 1 to run" in said
    assert "reused" in said  # the baseline at another temperature
    assert said.count(": exists") == 2  # the teacher and its predictions


def test_a_plan_tells_from_where_an_interrupted_job_goes_on(in_process, text_file, tmp_path):
    own = ["seed=0", "student.max_steps=100000", "checkpoint_every_n_steps=8", "loss.alpha=0"]
    own += [f"paths.outputs={tmp_path}", "logger=none", "sweep.name=broken"]
    command = [sys.executable, "-m", "lightning_distill", "-m", *TINY, f"data.path={text_file}"]
    running = subprocess.Popen([*command, *own], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    said = in_process("hydra.mode=MULTIRUN", *own, "stage=plan").stdout
    (one,) = plans(tmp_path).values()
    assert one["from_step"] > 0
    assert one["from_step"] % 8 == 0
    assert one["tokens"] == (100000 - one["from_step"]) * BATCH * LENGTH
    assert f"to run, from step {one['from_step']}" in said


def test_flops_are_those_of_the_matrices_and_of_attention(in_process, tmp_path):
    """6 for each weight and token, and for each layer 4 T² H forward, 10 T² H backward."""
    shape = ["student.num_hidden_layers=2", "loss.alpha=0", "loss.fused=false"]
    in_process("stage=plan", *shape, f"hydra.run.dir={tmp_path}", f"paths.outputs={tmp_path}")
    found = json.loads((tmp_path / "plan.json").read_text())
    H, V, layers = 16, 300, 2
    gains = (2 * layers + 1) * H
    assert found["parameters"] > V * H
    matrices = 6 * (found["parameters"] - gains) * BATCH * LENGTH
    attention = layers * BATCH * 14 * LENGTH**2 * H
    assert found["flops"] == STEPS * (matrices + attention)


def test_accumulated_batches_are_steps_of_more_tokens(in_process, tmp_path, plan):
    settings = ["trainer.accumulate_grad_batches=3", "loss.alpha=0", "transfer=cached"]
    in_process("stage=plan", *settings, f"hydra.run.dir={tmp_path}", f"paths.outputs={tmp_path}")
    found = json.loads((tmp_path / "plan.json").read_text())
    plain = plan[0]["0", "1"]
    assert found["tokens"] == 3 * plain["tokens"]
    assert found["flops"] == 3 * plain["flops"]


@pytest.mark.parametrize("interval", ["0.25", "1.0", "5"])
def test_validations_are_counted_as_lightning_makes_them(in_process, tmp_path, interval):
    own = [f"trainer.val_check_interval={interval}", f"hydra.run.dir={tmp_path}", "loss.alpha=0"]
    in_process(*own, "logger=csv", f"paths.outputs={tmp_path}")
    with (tmp_path / "metrics.csv").open() as file:
        made = sum(bool(row["validation/nll"]) for row in csv.DictReader(file))
    cfg = OmegaConf.load(tmp_path / ".hydra" / "config.yaml")
    assert Training(0, 0, 1, 0, 0).seconds(cfg, STEPS) == made


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["loss.temperature=4"], True),
        (["seed=3"], True),
        (["student.max_steps=7"], True),
        (["optimizer.lr=0.1"], True),
        (["loss.alpha=0.5"], True),
        (["loss.alpha=0"], False),
        (["student=m"], False),
        (["teacher=l"], False),
        (["data.batch_size=8"], False),
        (["transfer=cached"], False),
        (["loss.hidden.weight=1"], False),
        (["optimizer.weight_decay=0"], False),
    ],
    ids=str,
)
def test_jobs_that_cost_the_same_share_a_rehearsal(overrides, same):
    assert app
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, other = (cost_class(compose("config", own)) for own in ([], overrides))
    assert (plain == other) is same


def test_a_job_that_cannot_be_planned_is_named_beside_the_others(in_process, tmp_path):
    heads = "student.num_attention_heads=2,3"
    where = f"paths.outputs={tmp_path}"
    done = in_process("hydra.mode=MULTIRUN", "stage=plan", "loss.alpha=0", heads, where, expect=2)
    assert "1 job, 1 to run" in done.stdout
    assert "failed: " in done.stdout
    assert "student.hidden_size=16 must be a multiple of 2 × student.num_attention" in done.stdout


@pytest.mark.parametrize(
    "overrides",
    [
        ["transfer=sequence", "transfer.prompt_length=4"],
        ["transfer=on_policy", "transfer.prompt_length=4"],
        ["transfer=cached", "transfer.stored=hidden"],
        ["teacher.members=[{seed: 0}, {seed: 1, max_steps: 30}]"],
        [
            "student.initialize=teacher_layers",
            "student.hidden_size=32",
            "teacher.num_hidden_layers=3",
        ],
    ],
    ids=lambda o: o[0],
)
def test_every_transfer_can_be_planned(in_process, tmp_path, overrides):
    in_process("stage=plan", *overrides, f"hydra.run.dir={tmp_path}", f"paths.outputs={tmp_path}")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert all(found[key] > 0 for key in ("seconds", "flops", "memory_mb", "bytes"))
    made = [one for one in found["shared"] if not one["there"]]
    assert made
    assert all(one["seconds"] > 0 and one["bytes"] > 0 for one in made)
