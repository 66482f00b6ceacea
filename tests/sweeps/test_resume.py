"""Re-running a sweep: what is skipped, what is resumed, and what stays as it is."""

import csv
import json
import random
import re
import signal
import time

import pytest
from conftest import TINY
from forked import Place, results

pytestmark = pytest.mark.slow

EVERY = 8  # steps between checkpoints
TWELVE = [
    "student.max_steps=30",
    "trainer.log_every_n_steps=1",
    f"checkpoint_every_n_steps={EVERY}",
    "loss.temperature=1,2,4",
    "loss.alpha=0.5,1",
    "seed=0,1",
]


def numbers(folder):
    """What must not depend on how often a sweep was interrupted."""
    found = {}
    for name, job in results(folder).items():
        assert job["status"] == "finished"
        found[name] = {k: job[k] for k in ("key", "seed", "overrides", "teacher", "student")}
    return found


def curves(folder):
    """The training loss of each step, and the validation nll, of each job."""
    found = {}
    for file in folder.rglob("metrics.csv"):
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        for name in ("train/loss", "validation/nll"):
            found[file.parent.name, name] = [(r["step"], r[name]) for r in rows if r.get(name)]
    return found


@pytest.fixture
def start(tmp_path):
    """Starts a sweep in a process of its own, below one folder."""

    def start(*overrides, cwd="."):
        return Place(tmp_path / cwd).start("-m", *TINY, "sweep.name=all", *overrides)

    return start


@pytest.fixture
def run(start):
    def run(*overrides, expect=0, cwd="."):
        return start(*overrides, cwd=cwd).wait(expect).said

    return run


def steps_logged(folder):
    """How many training steps each job has logged."""
    return {name[0]: len(rows) for name, rows in curves(folder).items() if name[1] == "train/loss"}


def has_logged(command, folder, steps):
    """Waits for so many steps of all jobs together; false where the command ends before."""
    return command.until(lambda: sum(steps_logged(folder).values()) >= steps)


@pytest.mark.long
@pytest.mark.parametrize(("jobs", "kills"), [(4, 2), (12, 5)])
def test_a_sweep_killed_at_random_moments_ends_at_the_same_numbers(
    start, run, tmp_path, jobs, kills
):
    asked = TWELVE if jobs == 12 else [o for o in TWELVE if "temperature" not in o]
    run(*asked, cwd="whole")
    rng = random.Random(4)
    for _ in range(kills):
        folder = tmp_path / "killed" / "outputs" / "sweeps" / "all"
        before = steps_logged(folder)
        command = start(*asked, cwd="killed")
        more = sum(before.values()) + rng.randint(15, 6 * jobs + 3)
        assert has_logged(command, folder, more), command.said
        time.sleep(rng.uniform(0, 0.4))
        command.signal(signal.SIGKILL)
        said = command.wait(-signal.SIGKILL).said
        for name in re.findall(r"(\S+): finished before", said):
            assert before[name] == 30
        # No more of what the kill before had cut off is repeated than since the last checkpoint.
        (cut,) = [n for name, n in before.items() if n < 30 and "running" in said] or [None]
        if cut and cut >= EVERY:
            (step,) = re.findall(r"student: resuming from step (\d+)", said)
            assert cut - int(step) <= EVERY
    run(*asked, cwd="killed")
    whole = tmp_path / "whole" / "outputs" / "sweeps" / "all"
    assert len(numbers(whole)) == jobs
    assert numbers(folder) == numbers(whole)
    assert curves(folder) == curves(whole)
    for file in whole.rglob("student/model.safetensors"):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()


@pytest.mark.long
def test_a_stream_killed_at_random_moments_ends_at_the_same_weights(start, run, tmp_path):
    text, rng = tmp_path / "large.jsonl", random.Random(5)
    words = ["a", "small", "student", "learns", "soft", "targets", "from", "its", "teacher"]
    with text.open("w") as file:
        for _ in range(9000):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=30))}) + "\n")
    asked = [
        f"data.path={text}",
        "data.streaming=true",
        "data.num_workers=2",
        "data.batch_size=48",
        "student.max_steps=60",
        "trainer.log_every_n_steps=1",
        f"checkpoint_every_n_steps={EVERY}",
        "loss.alpha=0,0.5",
    ]
    run(*asked, cwd="whole")
    run(*asked, "data.num_workers=0", cwd="alone")
    folder = tmp_path / "killed" / "outputs" / "sweeps" / "all"
    said = ""
    for _ in range(3):
        command = start(*asked, cwd="killed")
        more = sum(steps_logged(folder).values()) + rng.randint(12, 40)
        has_logged(command, folder, more)
        command.process.kill()  # its workers notice by themselves
        said += command.wait(expect=None).said
    said += run(*asked, cwd="killed")
    assert "student: resuming from step" in said
    whole = tmp_path / "whole" / "outputs" / "sweeps" / "all"
    assert len(numbers(whole)) == 2
    assert numbers(folder) == numbers(whole)
    assert curves(folder) == curves(whole)
    alone = tmp_path / "alone" / "outputs" / "sweeps" / "all"  # without workers
    assert sorted(curves(alone).values()) == sorted(curves(whole).values())
    for file in whole.rglob("student/model.safetensors"):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_only_new_and_failed_jobs_are_run(run, tmp_path):
    run("loss.alpha=1", "loss.temperature=1")
    first = results(tmp_path / "outputs" / "sweeps" / "all")
    said = run("loss.alpha=1,-1", "loss.temperature=1,2", expect=1)
    assert said.count("finished before, skipped") == 1
    found = results(tmp_path / "outputs" / "sweeps" / "all")
    assert {name: found[name] for name in first} == first
    assert sorted(job["status"] for job in found.values()) == ["failed"] * 2 + ["finished"] * 2
    said = run("loss.alpha=1,-1", "loss.temperature=1", "sweep.rerun=none", expect=0)
    assert "failed before, skipped" in said
    said = run("loss.alpha=-1", "loss.temperature=1", expect=2)
    assert "must be a number from 0" in said


def test_a_changed_input_file_runs_a_new_job_and_keeps_the_old_results(run, tmp_path, text_file):
    text = tmp_path / "changing.jsonl"
    lines = text_file.read_text().splitlines(keepends=True)
    text.write_text("".join(lines))
    run("loss.alpha=0", f"data.path={text}")
    first = results(tmp_path / "outputs" / "sweeps" / "all")
    text.write_text("".join(reversed(lines)))
    run("loss.alpha=0", f"data.path={text}")
    both = results(tmp_path / "outputs" / "sweeps" / "all")
    assert both.items() >= first.items()
    assert len({job["key"] for job in both.values()}) == 2
    said = run("loss.alpha=0", f"data.path={text}", "sweep.rerun=all")
    assert "skipped" not in said
    assert len(results(tmp_path / "outputs" / "sweeps" / "all")) == 2


def test_jobs_with_one_key_are_trained_once_and_reported_each(run, tmp_path):
    said = run("loss.alpha=0", "loss.temperature=1,2,4", "transfer=online,cached")
    assert said.count("reuses the results") == 5
    found = list(results(tmp_path / "outputs" / "sweeps" / "all").values())
    assert len(found) == 6
    assert len({job["student"]["nll"] for job in found}) == 1
    assert sorted(job["cost"]["student_seconds"] > 0 for job in found) == [False] * 5 + [True]
    (name, *_) = re.findall(r"(\S+): reuses", said)
    weights = tmp_path / "outputs" / "sweeps" / "all" / name / "student" / "model.safetensors"
    assert weights.stat().st_nlink == 6  # once on the disk
    before = weights.read_bytes()
    run("loss.alpha=0", "loss.temperature=1", "transfer=online", "seed=0", "sweep.rerun=all")
    assert weights.read_bytes() == before


def test_stop_after_failures_runs_no_more_jobs(run, tmp_path):
    said = run("loss.alpha=-1,-2,-3,1", "sweep.stop_after_failures=2", expect=1)
    status = [job["status"] for job in results(tmp_path / "outputs" / "sweeps" / "all").values()]
    assert sorted(status) == ["failed", "failed", "not run", "not run"]
    assert "2 failed (sweep.stop_after_failures=2)" in said


def test_a_nan_loss_fails_only_its_own_job(run, tmp_path):
    said = run("optimizer.lr=1e-3,1e30", "loss.alpha=1", expect=1)
    found = list(results(tmp_path / "outputs" / "sweeps" / "all").values())
    assert sorted(job["status"] for job in found) == ["failed", "finished"]
    (high,) = (job for job in found if job["status"] == "failed")
    assert high["error"].startswith("Training diverged: ")
    assert "failed: optimizer.lr=1e+30: Training diverged: " in said
    assert "job.log" in said
