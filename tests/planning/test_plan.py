"""`stage=plan`: the estimates of a sweep against what the sweep then costs."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy

import lightning as L
import pytest
from conftest import TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_distill.cli import app
from lightning_distill.config.catalog import CONF
from lightning_distill.config.settings import plain_settings
from lightning_distill.distributed.topology import Hardware
from lightning_distill.planning.estimate import cost_settings
from lightning_distill.planning.profile import PartCost, pass_seconds
from lightning_distill.training.trainer import TrainerFactory

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
    """The plans of a sweep in empty outputs, and the printed table."""
    stdout = in_process(*SWEEP, "stage=plan", f"paths.outputs={outputs}").stdout
    return read_plans(outputs), stdout


@pytest.fixture(scope="module")
def done(in_process, outputs, plan):
    """The outputs after that sweep ran."""
    in_process(*SWEEP, "logger=csv", f"paths.outputs={outputs}")
    return outputs


def read_plans(outputs):
    """By the alpha and temperature of each job."""
    plans = {}
    for file in (outputs / "plan").rglob("plan.json"):
        plan = json.loads(file.read_text())
        swept = [o.split("=")[1] for o in plan["overrides"] if o.startswith(("loss.a", "loss.t"))]
        plans[tuple(swept)] = plan | {"folder": file.parent.name}
    return plans


def size(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_a_plan_leaves_its_table_and_the_tokens_only(in_process, tmp_path):
    in_process(*SWEEP, "stage=plan", f"paths.outputs={tmp_path}")
    assert {f.name for f in tmp_path.iterdir()} == {"artifacts", "plan"}
    assert {f.name for f in (tmp_path / "artifacts").iterdir()} == {"tokenizer", "tokens"}
    assert not list(tmp_path.rglob("results.json"))
    assert {f.name for f in tmp_path.rglob("*.safetensors")} == {"tokens.safetensors"}


def test_shared_artifacts_are_listed_once(plan):
    plans, stdout = plan
    assert len(plans) == 4
    assert all(job["tokens"] == STEPS * BATCH * LENGTH for job in plans.values())
    assert "4 jobs, 3 to run" in stdout  # the temperature of a baseline has no effect
    assert "as loss.alpha=0,loss.temperature=1" in stdout
    assert stdout.count("teacher ") == stdout.count("predictions ") == 1
    assert "271 blocks" in stdout


def test_the_estimated_bytes_are_those_that_the_sweep_writes(plan, done):
    plans, _ = plan
    job = plans["1", "2"]
    folder = done / "sweeps" / "planned" / job["folder"]
    assert job["bytes"] == pytest.approx(size(folder), rel=0.1)
    assert (folder / "checkpoints" / "last.ckpt").exists()
    shared = {artifact["what"]: artifact["bytes"] for artifact in job["shared"]}
    for kind in ("teacher", "predictions"):
        (artifact,) = (f for f in (done / "artifacts" / kind).iterdir() if f.is_dir())
        assert shared[kind] == pytest.approx(size(artifact), rel=0.1)


def test_finished_jobs_and_existing_artifacts_cost_nothing(in_process, plan, done):
    stdout = in_process(*SWEEP, "stage=plan", f"paths.outputs={done}").stdout
    assert "4 jobs, 0 to run" in stdout
    assert "nothing to run" in stdout
    larger = [*SWEEP[:-1], "loss.temperature=1,2,4"]
    stdout = in_process(*larger, "stage=plan", f"paths.outputs={done}").stdout
    assert "6 jobs, 1 to run" in stdout
    assert "reused" in stdout  # the baseline at another temperature
    assert stdout.count(": exists") == 2  # the teacher and its predictions


def test_an_interrupted_job_costs_the_steps_after_its_checkpoint(in_process, text_file, tmp_path):
    settings = ["seed=0", "student.max_steps=100000", "checkpoint_every_n_steps=8", "loss.alpha=0"]
    settings += [f"paths.outputs={tmp_path}", "logger=none", "sweep.name=broken"]
    command = [sys.executable, "-m", "lightning_distill", "-m", *TINY, f"data.path={text_file}"]
    running = subprocess.Popen(
        [*command, *settings], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    stdout = in_process("hydra.mode=MULTIRUN", *settings, "stage=plan").stdout
    (job,) = read_plans(tmp_path).values()
    assert job["from_step"] > 0
    assert job["from_step"] % 8 == 0
    assert job["tokens"] == (100000 - job["from_step"]) * BATCH * LENGTH
    assert f"to run, from step {job['from_step']}" in stdout


def test_flops_are_those_of_matrix_products_and_attention(in_process, tmp_path):
    """6 per weight and token; per layer 4 T² H forward and 10 T² H backward."""
    shape = ["student.num_hidden_layers=2", "loss.alpha=0", "loss.fused=false"]
    in_process("stage=plan", *shape, f"hydra.run.dir={tmp_path}", f"paths.outputs={tmp_path}")
    estimate = json.loads((tmp_path / "plan.json").read_text())
    H, V, layers = 16, 300, 2
    gains = (2 * layers + 1) * H
    assert estimate["parameters"] > V * H
    matrices = 6 * (estimate["parameters"] - gains) * BATCH * LENGTH
    attention = layers * BATCH * 14 * LENGTH**2 * H
    assert estimate["flops"] == STEPS * (matrices + attention)


def test_accumulated_batches_multiply_the_tokens_of_a_step(in_process, tmp_path, plan):
    settings = ["trainer.accumulate_grad_batches=3", "loss.alpha=0", "transfer=cached"]
    in_process("stage=plan", *settings, f"hydra.run.dir={tmp_path}", f"paths.outputs={tmp_path}")
    estimate = json.loads((tmp_path / "plan.json").read_text())
    plain = plan[0]["0", "1"]
    assert estimate["tokens"] == 3 * plain["tokens"]
    assert estimate["flops"] == 3 * plain["flops"]


@pytest.mark.parametrize("transfer", ["online", "sequence"])
def test_the_steps_of_epochs_are_those_of_the_run(in_process, tmp_path, transfer):
    """Of generated text about those, as the teacher may end a sequence early."""
    settings = ["student.max_steps=null", "student.epochs=2", f"transfer={transfer}"]
    settings += [f"hydra.run.dir={tmp_path}", f"paths.outputs={tmp_path}"]
    in_process("stage=plan", *settings)
    planned = json.loads((tmp_path / "plan.json").read_text())["count"]
    in_process(*settings)
    made = json.loads((tmp_path / "results.json").read_text())["training"]["steps"]
    assert planned == made if transfer == "online" else made <= planned <= 2 * made


@pytest.mark.parametrize("interval", ["0.25", "1.0", "5"])
def test_validations_are_counted_as_lightning_runs_them(in_process, tmp_path, interval):
    settings = [f"trainer.val_check_interval={interval}", "loss.alpha=0"]
    settings += [f"hydra.run.dir={tmp_path}"]
    in_process(*settings, "logger=csv", f"paths.outputs={tmp_path}")
    with (tmp_path / "metrics.csv").open() as file:
        made = sum(bool(row["validation/nll"]) for row in csv.DictReader(file))
    cfg = OmegaConf.load(tmp_path / ".hydra" / "config.yaml")
    every = cfg.trainer.val_check_interval
    trainers = TrainerFactory(L.Trainer, Hardware(), BATCH, val_check_interval=every)
    cost = PartCost(unit_seconds=0, unit_flops=0, memory_mb=0, validation_seconds=1)
    assert cost.estimate(STEPS, trainers)["seconds"] == made


def test_a_pass_over_few_batches_is_extrapolated_unless_it_was_short_anyway():
    record = {"seconds": [9.0, 4.0, 2.0], "examples": [4, 4, 2], "limit": 1.0}
    assert pass_seconds(record, 40, 8) == 40 * 1.0  # the first batch is slow
    assert pass_seconds({**record, "limit": 2}, 40, 8) == 2 * 8 * 1.0  # the teacher check
    assert pass_seconds({**record, "limit": 2}, 10, 8) == 10 * 1.0


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["loss.temperature=4"], True),
        (["seed=3"], True),
        (["student.max_steps=7"], True),
        (["student.epochs=2"], True),
        (["student.stop_after=2"], True),
        (["student.keep=best"], False),
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
def test_jobs_that_cost_the_same_share_a_dry_run(overrides, same):
    assert app
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, other = (
            cost_settings(plain_settings(compose("config", own))) for own in ([], overrides)
        )
    assert (plain == other) is same


def test_the_settings_that_cost_are_a_copy():
    assert app
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = plain_settings(compose("config", ["student.lora.rank=2", "teacher.lora.rank=2"]))
    before = deepcopy(settings)
    cost_settings(settings)
    assert settings == before


def test_a_job_that_cannot_be_planned_is_named_below_the_others(in_process, tmp_path):
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
    estimate = json.loads((tmp_path / "plan.json").read_text())
    assert all(estimate[key] > 0 for key in ("seconds", "flops", "memory_mb", "bytes"))
    made = [one for one in estimate["shared"] if not one["there"]]
    assert made
    assert all(one["seconds"] > 0 and one["bytes"] > 0 for one in made)


@pytest.mark.slow
def test_the_estimated_seconds_are_about_those_of_the_run(in_process, tmp_path):
    """Within a factor of 3, as other processes share the cores."""
    own = ["transfer=cached", "student.max_steps=150", "teacher.max_steps=150", "student=s"]
    own += ["data.batch_size=16", f"paths.outputs={tmp_path}"]
    in_process("stage=plan", *own, f"hydra.run.dir={tmp_path / 'plan'}")
    in_process(*own, f"hydra.run.dir={tmp_path / 'run'}")
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    cost = json.loads((tmp_path / "run" / "results.json").read_text())["cost"]
    planned = {one["what"]: one["seconds"] for one in plan["shared"]}
    measured = {"teacher": cost["teacher_seconds"], "student": cost["student_seconds"]}
    planned["student"] = plan["training_seconds"]
    for what, seconds in measured.items():
        assert seconds / 3 < planned[what] < 3 * seconds
