"""Tasks and speed through the command, on two tiny models."""

import csv
import json
import re

import pytest

from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tasks.masked_lm import MaskedLM
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.generative import check_request
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.report.summarize import summarize

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def sweep(in_process, tmp_path_factory, lm_eval_tasks):
    """A sweep of two jobs that evaluated a task."""
    outputs = tmp_path_factory.mktemp("outputs")
    own = f"evaluate.task_path={lm_eval_tasks}"
    same = ("-m", "loss.temperature=1,2", f"paths.outputs={outputs}", "sweep.name=two", own)
    done = in_process(*same, "evaluate.tasks=[choice]", "evaluate.limit=9")
    folder = outputs / "sweeps" / "two"
    jobs = sorted(file.parent for file in folder.glob("*/results.json"))
    return jobs, outputs, same, done.stdout


def test_scores_of_requested_tasks_are_in_the_results_and_the_log(sweep):
    jobs, _, _, said = sweep
    assert len(jobs) == 2
    assert not any("evaluate" in job.name for job in jobs)
    for job in jobs:
        for role in ("student", "teacher"):
            found = results(job)[role]["tasks"]["choice"]
            assert found.keys() == {"acc", "acc_stderr", "examples"}
            assert found["examples"] == 9
            assert "speed" not in results(job)[role]
    teacher = results(jobs[0])["teacher"]
    assert teacher == results(jobs[1])["teacher"]
    assert f"{teacher['tasks']['choice']['acc']:.4f} ± " in said


def test_finished_jobs_are_skipped_with_a_hint_about_newly_requested_scores(sweep, in_process):
    jobs, _, same, _ = sweep
    before = [results(job) for job in jobs]
    done = in_process(*same, "evaluate.tasks=[choice,text]", "evaluate.speed=true")
    assert done.stdout.count("finished before, skipped") == 2
    assert "lacks the scores of evaluate.tasks and evaluate.speed" in done.stdout
    said = " ".join(done.stdout.split())  # the path is relative to the working directory
    assert re.search(rf"stage=evaluate evaluate.run='\S*{jobs[0].parent.name}'", said)
    assert [results(job) for job in jobs] == before
    assert "2 of 2 jobs finished" in (jobs[0].parent / "report.html").read_text()


def test_a_finished_sweep_is_evaluated_again(sweep, in_process, lm_eval_tasks):
    jobs, outputs, _, _ = sweep
    before = [results(job) for job in jobs]
    done = in_process(
        "stage=evaluate",
        f"evaluate.run='{jobs[0].parent}'",
        "evaluate.tasks=[text]",
        f"evaluate.task_path={lm_eval_tasks}",
        "evaluate.speed=true",
        f"paths.outputs={outputs}",
    )
    assert "times as fast as its teacher" in done.stdout
    for job, old in zip(jobs, before, strict=True):
        for role in ("student", "teacher"):
            new = results(job)[role]
            assert new["speed"].keys() == {"bytes", "tokens_per_second", "first_token_seconds"}
            assert new["tasks"]["choice"] == old[role]["tasks"]["choice"]
            assert new["tasks"]["text"]["examples"] == 24
            assert new["nll"] == old[role]["nll"]
        new = results(job)
        assert new["student"]["speed"]["bytes"] == 4 * new["student"]["parameters"]
    with (jobs[0].parent / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["student.tasks.text.bits_per_byte"]) for row in rows] == [
        results(job)["student"]["tasks"]["text"]["bits_per_byte"] for job in jobs
    ]
    assert all(float(row["teacher.speed.tokens_per_second"]) > 0 for row in rows)


def test_the_report_shows_tasks_and_speed(job, tmp_path):
    job("plain", 5.0, alpha=0)
    folder = job("distilled", 4.25)
    summarize(tmp_path)
    assert "writes" not in (tmp_path / "report.html").read_text()
    found = results(folder)
    found["student"]["tasks"] = {"a'<b>": {"acc": 0.625, "acc_stderr": 0.1, "examples": 30}}
    found["teacher"]["tasks"] = {"a'<b>": {"acc": 0.75, "acc_stderr": 0.1, "examples": 30}}
    found["student"]["speed"] = {
        "bytes": 2_500_000,
        "tokens_per_second": 321.4,
        "first_token_seconds": 0.0123,
    }
    (folder / "results.json").write_text(json.dumps(found))
    summarize(tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in (">0.625<", ">321<", ">12.3 ms<", ">2.5 MB<", "a&#39;&lt;b&gt; acc", "0.750"):
        assert text in page
    assert "<b>" not in page.replace("&lt;b&gt;", "").split("table-jobs")[1].split("</table>")[0]
    assert "acc_stderr</button>" not in page


def test_a_student_whose_teacher_was_removed_is_evaluated_alone(
    sweep, in_process, lm_eval_tasks, tmp_path
):
    jobs, _, _, _ = sweep
    before = results(jobs[1])
    done = in_process(
        "stage=evaluate",
        f"evaluate.run='{jobs[1]}'",
        "evaluate.tasks=[choice]",
        f"evaluate.task_path={lm_eval_tasks}",
        f"paths.outputs={tmp_path}",
    )
    assert "only the student is scored" in done.stdout
    assert results(jobs[1])["student"]["tasks"]["choice"]["examples"] == 24
    assert results(jobs[1])["teacher"] == before["teacher"]


def test_a_teacher_is_evaluated_alone_and_a_run_without_models_is_refused(
    sweep, in_process, lm_eval_tasks, tmp_path
):
    _, outputs, _, _ = sweep
    run = tmp_path / "run"
    tasks = ("evaluate.tasks=[text]", f"evaluate.task_path={lm_eval_tasks}")
    in_process("stage=teacher", f"paths.outputs={outputs}", f"hydra.run.dir={run}", *tasks)
    found = results(run)
    assert found["student"] is None
    assert found["teacher"]["tasks"]["text"]["examples"] == 24
    again = ("stage=evaluate", f"evaluate.run={run}", *tasks)
    done = in_process(*again, f"paths.outputs={tmp_path}", expect=2)
    assert "has no student, and its teacher does not exist" in done.stderr


def test_invalid_evaluation_settings_are_refused(in_process, tmp_path):
    run = ("stage=evaluate", f"evaluate.run={tmp_path}", f"paths.outputs={tmp_path}")
    wrong = {
        "tasks=choice": "must be a list, as in evaluate.tasks=[choice]",
        "limit=-1": "must be a whole number of at least 1",
        "num_fewshot=-1": "must be a whole number of at least 0",
        "batch_size=0": "must be a whole number of at least 1",
        "speed=fast": "must be true or false",
    }
    done = in_process(*run, *(f"evaluate.{setting}" for setting in wrong), expect=2)
    for setting, said in wrong.items():
        assert f"evaluate.{setting} {said}" in done.stderr
    assert "1 is not the name" in in_process(*run, "evaluate.tasks=[1]", expect=2).stderr
    assert "not the folder of a run: no " in in_process(*run, expect=2).stderr


def test_tasks_and_speed_are_refused_for_models_that_generate_no_text():
    check_request(EvaluationRequest(speed=True), CausalLM)
    check_request(EvaluationRequest(), MaskedLM)
    with pytest.raises(ConfigError, match=r"Set evaluate\.tasks=\[\] evaluate\.speed=false"):
        check_request(EvaluationRequest(speed=True), MaskedLM)


def test_a_task_whose_data_are_missing_is_refused_before_training(in_process, tmp_path):
    (tmp_path / "lost.yaml").write_text(
        "{task: lost, dataset_path: json, test_split: test, doc_to_text: a, doc_to_target: a, "
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/lost.jsonl}}}}}}"
    )
    asked = ("evaluate.tasks=[lost]", f"evaluate.task_path={tmp_path}")
    done = in_process(*asked, f"paths.outputs={tmp_path}/outputs", expect=2)
    assert "lost.jsonl" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "outputs" / "artifacts").exists()
