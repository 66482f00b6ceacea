"""Job folders, whole and half-finished."""

import json
import shutil

import pytest
import yaml

from lightning_distill.report.summarize import summarize
from lightning_distill.sweeps.multirun import jobs_not_started, read_sweep_command
from lightning_distill.sweeps.records import read_jobs


def test_a_job_is_called_by_what_sets_it_apart(job, tmp_path):
    job("a", 4.3, more=["loss.alpha=1"])
    job("b", 4.4, more=["loss.alpha=1"])
    assert [row.name for row in read_jobs(tmp_path)] == ["name=a", "name=b"]


def test_what_is_swept_is_known_of_jobs_that_do_not_say_it(job, tmp_path):
    job("said", 4.3, more=["loss.temperature=2.0"], temperature=2.0)
    job("unsaid", 4.4, temperature=1.0)
    assert [r.swept["loss.temperature"] for r in read_jobs(tmp_path)] == ["2", "1"]


def test_whatever_is_missing_the_rest_is_read(job, tmp_path):
    job("whole", 4.3)
    shutil.rmtree(job("settingless", 4.4) / ".hydra")
    (job("cut off", 4.5) / "results.json").write_text('{"status": "fini')
    (job("curveless", 4.6) / "metrics.csv").unlink()
    (job("sampleless", 4.7) / "samples.json").write_text("[{")
    (job("begun", 4.8) / "results.json").unlink()
    (job("odd", 4.9) / "results.json").write_text("null")
    (job("noisy", 4.9) / "results.json").write_bytes(b"\xff\xfe\0")
    for file in (".hydra/config.yaml", "samples.json", "metrics.csv"):
        (tmp_path / "noisy,seed=0" / file).write_bytes(b"\xff\xfe\0")
    rows = {row.folder.name.split(",")[0]: row for row in read_jobs(tmp_path)}
    assert rows["whole"].missing_files == []
    assert rows["settingless"].nll == 4.4
    assert rows["settingless"].missing_files == [".hydra/config.yaml"]
    assert rows["curveless"].missing_files == ["metrics.csv"]
    assert rows["sampleless"].missing_files == ["samples.json"]
    assert "results.json cannot be read" in rows["cut off"].failure_reason
    assert "results.json cannot be read" in rows["odd"].failure_reason
    assert rows["begun"].failure_reason == "no results.json: killed before it began"
    assert rows["begun"].name == "name=begun"


@pytest.mark.parametrize(
    "damage",
    [
        {"status": 7},
        {"student": "x"},
        {"student": {"nll": 4.0}},
        {"student": {"nll": "low", "perplexity": 1, "parameters": 1}},
        {"teacher": [1]},
        {"cost": None},
    ],
    ids=str,
)
def test_results_that_no_job_wrote_are_told_and_the_rest_is_shown(job, tmp_path, damage, capsys):
    job("whole", 4.3)
    file = job("odd", 4.4) / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    rows = summarize(tmp_path)
    assert sorted(row.failure_reason[:27] for row in rows) == ["", "results.json cannot be read"]
    assert "name=whole" in capsys.readouterr().out


def test_a_note_of_the_sweep_that_is_damaged_is_none(job, tmp_path):
    job("whole", 4.3)
    for damage in (b"\xff\xfe\0", b"3", b"hydra: 3"):
        (tmp_path / "multirun.yaml").write_bytes(damage)
        assert read_sweep_command(tmp_path) == ([], [])


def test_a_run_that_only_reported_is_no_job(job, tmp_path):
    job("a", 4.3)
    (tmp_path / "report" / ".hydra").mkdir(parents=True)
    (tmp_path / "report" / ".hydra" / "config.yaml").write_text("stage: report\n")
    assert len(read_jobs(tmp_path)) == 1


def test_a_job_that_runs_says_how_far_it_is(job, tmp_path):
    job("on its way", 4.3, steps=200, status="running")
    (row,) = read_jobs(tmp_path)
    assert row.failure_reason == "running, or killed before its end, at step 120 of 200"


def test_a_line_that_is_being_written_is_not_read_as_a_whole_one(job, tmp_path):
    folder = job("a", 4.3)
    with (folder / "metrics.csv").open("a") as curves:
        curves.write("0,139,4.")
    (row,) = read_jobs(tmp_path)
    assert row.curves[-1]["step"] == "119"


def test_a_number_that_is_none_is_no_result(job, tmp_path):
    folder = job("a", 4.3)
    found = json.loads((folder / "results.json").read_text())
    found["student"]["nll"] = float("nan")
    (folder / "results.json").write_text(json.dumps(found))
    (row,) = read_jobs(tmp_path)
    assert row.nll is None
    assert row.failure_reason == "finished without a finite nll"


def test_jobs_without_a_folder_are_told_from_the_sweeps_command(sweep_of_24):
    gone = "loss.alpha=1,loss.temperature=2,seed=1,student=s"
    shutil.rmtree(sweep_of_24 / gone)
    rows = read_jobs(sweep_of_24)
    command, jobs = read_sweep_command(sweep_of_24)
    assert command[0] == "student=xs,s"
    assert len(jobs) == 24
    assert [sorted(job) for job in jobs_not_started(rows, jobs)] == [gone.split(",")]


def test_what_another_sweeper_would_have_chosen_is_not_guessed(sweep_of_24):
    file = sweep_of_24 / "multirun.yaml"
    noted = yaml.safe_load(file.read_text())
    noted["hydra"]["sweeper"]["_target_"] = "optuna.Sweeper"
    file.write_text(yaml.safe_dump(noted))
    assert read_sweep_command(sweep_of_24)[1] == []
