"""No job overwrites another's results, and relative paths are those of the command's folder."""

import json

import pytest


def results(folder):
    files = sorted(folder.rglob("results.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


@pytest.fixture
def run(in_process, tmp_path):
    def run(*overrides, expect=0):
        where = (f"paths.outputs={tmp_path}", "student.max_steps=2", "loss.alpha=0")
        return in_process(*where, *overrides, expect=expect)

    return run


def test_a_numbered_folder_keeps_its_first_jobs_results(run, tmp_path):
    """hydra#1773"""
    numbered = ("-m", "sweep.name=n", "hydra.sweep.subdir=${hydra.job.num}")
    run(*numbered, "seed=0,1")
    before = results(tmp_path / "sweeps" / "n")
    refused = run(*numbered, "seed=2,3", expect=2)
    assert "holds the results of another job" in refused.stderr
    assert "hydra.sweep.subdir" in refused.stderr
    assert results(tmp_path / "sweeps" / "n") == before
    assert {job["seed"] for job in before.values()} == {0, 1}


def test_jobs_that_share_a_folder_are_refused(run, tmp_path):
    refused = run("-m", "sweep.name=n", "hydra.sweep.subdir=.", "seed=0,1", expect=2)
    assert "holds the results of another job" in refused.stderr
    (kept,) = results(tmp_path / "sweeps" / "n").values()
    assert (kept["seed"], kept["status"]) == (0, "finished")


def test_a_run_in_the_folder_of_another_is_refused(run, tmp_path):
    run("seed=0", f"hydra.run.dir={tmp_path / 'mine'}")
    refused = run("seed=1", f"hydra.run.dir={tmp_path / 'mine'}", expect=2)
    assert "Set another hydra.run.dir" in refused.stderr
    (kept,) = results(tmp_path / "mine").values()
    assert kept["seed"] == 0
    run("seed=0", f"hydra.run.dir={tmp_path / 'mine'}")  # the same job again


def test_paths_are_those_of_where_the_command_was_given(in_process, text_file, monkeypatch):
    """hydra#922: with hydra.job.chdir, each job is in its own folder."""
    from pathlib import Path

    here = []

    def chdir(self, path, _original=pytest.MonkeyPatch.chdir):
        _original(self, path)
        here.append(Path(path))
        (Path(path) / "tiny.jsonl").write_bytes(text_file.read_bytes())

    monkeypatch.setattr(pytest.MonkeyPatch, "chdir", chdir)
    settings = ("-m", "hydra.job.chdir=true", "student.max_steps=2", "sweep.name=here", "seed=0,1")
    in_process(*settings, "data.path=tiny.jsonl", "paths.outputs=outputs")
    outputs = here[-1] / "outputs"
    assert len(list(outputs.glob("artifacts/teacher/*/manifest.json"))) == 1
    assert len(results(outputs / "sweeps" / "here")) == 2
    assert len(list(here[-1].rglob("artifacts"))) == 1
