"""Reading job folders, complete and incomplete."""

import json
import shutil

import pytest
import yaml

from lightning_distill.report.summarize import summarize
from lightning_distill.sweeps.multirun import jobs_not_started, read_sweep_command
from lightning_distill.sweeps.records import read_jobs


def test_a_job_is_named_by_its_distinguishing_overrides(job, tmp_path):
    job("a", 4.3, more=["loss.alpha=1"])
    job("b", 4.4, more=["loss.alpha=1"])
    assert [row.name for row in read_jobs(tmp_path)] == ["name=a", "name=b"]


def test_swept_values_come_from_the_config_where_no_override_sets_them(job, tmp_path):
    job("given", 4.3, more=["loss.temperature=2.0"], temperature=2.0)
    job("default", 4.4, temperature=1.0)
    assert [r.swept["loss.temperature"] for r in read_jobs(tmp_path)] == ["1", "2"]


def test_missing_or_damaged_files_are_listed_and_the_rest_is_read(job, tmp_path):
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
def test_invalid_results_are_reported_and_the_other_jobs_are_shown(job, tmp_path, damage, capsys):
    job("whole", 4.3)
    file = job("odd", 4.4) / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    rows = summarize(tmp_path)
    assert sorted(row.failure_reason[:27] for row in rows) == ["", "results.json cannot be read"]
    assert "name=whole" in capsys.readouterr().out


def test_a_damaged_multirun_yaml_gives_no_command(job, tmp_path):
    job("whole", 4.3)
    for damage in (b"\xff\xfe\0", b"3", b"hydra: 3"):
        (tmp_path / "multirun.yaml").write_bytes(damage)
        assert read_sweep_command(tmp_path) == ([], [])


def test_a_report_run_is_not_a_job(job, tmp_path):
    job("a", 4.3)
    (tmp_path / "report" / ".hydra").mkdir(parents=True)
    (tmp_path / "report" / ".hydra" / "config.yaml").write_text("stage: report\n")
    assert len(read_jobs(tmp_path)) == 1


def test_a_running_job_says_its_last_step(job, tmp_path):
    job("on its way", 4.3, steps=200, status="running")
    (row,) = read_jobs(tmp_path)
    assert row.failure_reason == "running, or killed before its end, at step 120 of 200"


def test_an_incomplete_last_line_of_the_curves_is_ignored(job, tmp_path):
    folder = job("a", 4.3)
    with (folder / "metrics.csv").open("a") as curves:
        curves.write("0,139,4.")
    (row,) = read_jobs(tmp_path)
    assert row.curves[-1]["step"] == "119"


def test_a_nan_score_is_not_a_result(job, tmp_path):
    folder = job("a", 4.3)
    found = json.loads((folder / "results.json").read_text())
    found["student"]["nll"] = float("nan")
    (folder / "results.json").write_text(json.dumps(found))
    (row,) = read_jobs(tmp_path)
    assert row.nll is None
    assert row.failure_reason == "finished without a finite nll"


def test_jobs_without_a_folder_are_known_from_the_sweep_command(sweep_of_24):
    gone = "loss.alpha=1,loss.temperature=2,seed=1,student=s"
    shutil.rmtree(sweep_of_24 / gone)
    rows = read_jobs(sweep_of_24)
    command, jobs = read_sweep_command(sweep_of_24)
    assert command[0] == "student=xs,s"
    assert len(jobs) == 24
    assert [sorted(job) for job in jobs_not_started(rows, jobs)] == [gone.split(",")]


def test_jobs_of_another_sweeper_are_not_guessed(sweep_of_24):
    file = sweep_of_24 / "multirun.yaml"
    noted = yaml.safe_load(file.read_text())
    noted["hydra"]["sweeper"]["_target_"] = "optuna.Sweeper"
    file.write_text(yaml.safe_dump(noted))
    assert read_sweep_command(sweep_of_24)[1] == []
