"""W&B runs, read from the files of a real offline W&B."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import TINY

from lightning_distill.config.catalog import CONF
from lightning_distill.tracking import wandb_sync

WRITE_TIMEOUT = 60  # seconds
BLOCK = 32768  # bytes; W&B writes in blocks


@pytest.fixture(scope="module")
def sweep(command, tmp_path_factory):
    """Baseline and distilled, two seeds each, and the baseline at another temperature."""
    outputs = tmp_path_factory.mktemp("outputs")
    command(
        "-m",
        "loss.alpha=0,1",
        "seed=0,1",
        "sweep.name=small",
        "logger=wandb",
        "logger.wandb.tags=[mine, online]",
        f"paths.outputs={outputs}",
    )
    return outputs / "sweeps" / "small"


@pytest.fixture(scope="module")
def runs(sweep, tracked):
    return {one.run.display_name: one for one in tracked(sweep)}


@pytest.mark.slow
def test_a_run_is_named_by_its_distinguishing_overrides_with_the_seed_last(runs):
    students = {name for name, one in runs.items() if one.run.job_type == "student"}
    assert students == {"alpha=0 seed=0", "alpha=0 seed=1", "alpha=1 seed=0", "alpha=1 seed=1"}
    (teacher,) = set(runs) - students
    assert re.fullmatch(r"teacher xs [0-9a-f]{8}", teacher)
    assert runs[teacher].run.job_type == "teacher"
    assert {one.run.run_group for one in runs.values()} == {"small"}


@pytest.mark.slow
def test_tags_are_the_choices_baseline_and_the_users_tags(runs):
    factors = ["forward_kl", "online", "student xs", "teacher xs"]
    assert list(runs["alpha=1 seed=0"].run.tags) == [*factors, "mine"]
    assert list(runs["alpha=0 seed=0"].run.tags) == [*factors, "baseline", "mine"]


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_share_a_name_and_a_settings_key(runs):
    job = {name: one.config.get("job") for name, one in runs.items()}
    for alpha in (0, 1):
        first, second = job[f"alpha={alpha} seed=0"], job[f"alpha={alpha} seed=1"]
        assert first["key"] != second["key"]
        assert first["settings"] == second["settings"]
        assert first["name"] == second["name"] == f"alpha={alpha}"
    assert job["alpha=0 seed=0"]["settings"] != job["alpha=1 seed=0"]["settings"]


@pytest.mark.long
def test_a_killed_run_resumes_in_the_same_wandb_run_offline_and_uploaded(
    command, text_file, tracked, wandb_server, tmp_path
):
    settings = [
        "loss.alpha=0",
        "sweep.name=killed",
        "logger=wandb",
        f"paths.outputs={tmp_path}",
        "student.max_steps=600",
        "trainer.log_every_n_steps=1",
        "checkpoint_every_n_steps=20",
    ]

    def written():
        return sum(file.stat().st_size for file in tmp_path.rglob("*.wandb"))

    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lightning_distill",
            "-m",
            *TINY,
            f"data.path={text_file}",
            *settings,
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + WRITE_TIMEOUT
    while written() < BLOCK and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    done = command("-m", *settings)
    assert "resuming from" in done.stdout
    assert "warn" not in (done.stdout + done.stderr).lower()
    first, second = tracked(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert first.run.display_name == second.run.display_name
    before, after = (one.history["trainer/global_step"] for one in (first, second))
    assert before[0] < 20 <= after[0]
    assert (after[0] % 20, after[-1]) == (0, 599)
    assert "student" not in first.summary
    assert second.summary["student"]["nll"] > 0

    # The upload has all steps once, although the killed run's file ends in half a record.
    # A run that was killed before it wrote anything is skipped.
    empty = tmp_path / "sweeps" / "killed" / "wandb" / "offline-run-20200101_000000-00000000"
    empty.mkdir()
    (empty / "run-00000000.wandb").write_bytes(b":W&B\0\0\0")
    server, key = wandb_server
    one, other = wandb_sync.offline_runs(tmp_path)
    assert not wandb_sync.has_ended(one, [one])  # it may still be running
    assert wandb_sync.has_ended(other, [one, other])
    command("stage=sync", f"paths.outputs={tmp_path}", **key)
    ((run_id, lines),) = server.history.items()
    assert run_id == first.run.run_id
    rows = [json.loads(line) for line in lines]
    assert all(row["_step"] == row["trainer/global_step"] for row in rows)
    assert [row["_step"] for row in rows] == [*before, *after]
    assert "no offline run" in command("stage=sync", f"paths.outputs={tmp_path}", **key).stdout


@pytest.mark.slow
def test_under_wandb_agent_the_run_is_the_agents(text_file, tracked, tmp_path, monkeypatch):
    from wandb.wandb_agent import Agent

    sweep_config = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "searched")
    for name in ("RUN_ID", "DIR", "SWEEP_PARAM_PATH"):  # set by the agent, and not unset
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")
    agent = Agent(None, None, sweep_id="searched")
    fixed = [o for o in TINY if not o.startswith(("student=", "logger="))]
    agent._sweep_command = [*sweep_config["command"], *fixed, f"data.path={text_file}"]
    chosen = {
        key: {"value": _first_value(parameter)}
        for key, parameter in sweep_config["parameters"].items()
    }
    agent._command_run({"run_id": "agents1", "program": sweep_config["program"], "args": chosen})
    assert agent._run_processes["agents1"].wait(timeout=300) == 0

    (one,) = tracked(tmp_path)
    assert (one.run.run_id, one.run.sweep_id) == ("agents1", "searched")
    assert one.run.run_group == "searched"
    assert one.run.display_name == "student=xs temperature=1.0 alpha=0.0 lr=0.0003"
    assert one.config["loss.temperature"] == one.config["loss"]["temperature"] == 1.0
    assert sweep_config["metric"]["name"] in one.summary
    assert list(tmp_path.glob("outputs/runs/distill/*/results.json"))


def _first_value(parameter):
    return parameter["values"][0] if "values" in parameter else parameter["min"]
