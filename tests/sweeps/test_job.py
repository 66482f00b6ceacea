"""What results.json holds, and what a sweeper reads of it."""

import json

import pytest

from lightning_distill.metrics.declarations import objective_metrics
from lightning_distill.sweeps.job import objectives


def test_objectives_are_a_number_a_list_or_none_for_a_failed_job():
    results = {"student": {"nll": 2.0, "parameters": 7, "teacher_kl": float("nan")}}
    assert objectives(results, ["student.nll"]) == 2.0
    assert objectives(results, ["student.parameters", "student.nll"]) == [7.0, 2.0]
    assert objectives(results, ["student.teacher_kl"]) is None
    assert objectives(results, ["student.nll", "teacher.nll"]) is None
    assert objectives({"teacher": None}, ["teacher.nll"]) is None


@pytest.mark.long
def test_every_number_in_results_json_can_be_an_objective(in_process, tmp_path):
    in_process("hydra.mode=MULTIRUN", "loss.alpha=1", "sweep.name=one", f"paths.outputs={tmp_path}")
    (file,) = tmp_path.glob("sweeps/one/*/results.json")
    found = json.loads(file.read_text())
    groups = ("student", "teacher", "cost")
    written = {f"{group}.{key}" for group in groups for key in found[group]}
    assert written <= set(objective_metrics())


@pytest.mark.parametrize(("names", "said"), [("[student.nl]", "student.nll?"), ("5", "a list")])
def test_an_unknown_objective_is_refused(in_process, names, said, tmp_path):
    done = in_process(f"sweep.objectives={names}", f"paths.outputs={tmp_path}", expect=2)
    assert said in done.stderr
