import json
import subprocess
import sys
from types import ModuleType

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import lightning_distill.cli.app  # noqa: F401 (registers the resolver)
from lightning_distill.config.catalog import CONF
from lightning_distill.metrics.declarations import Metric, objective_metrics, task_metrics
from lightning_distill.report.jobs_table import jobs_table
from lightning_distill.report.tables import csv_rows, table_cells
from lightning_distill.sweeps.job import objectives, problems_of_objectives
from lightning_distill.sweeps.job_files import GROUPS
from lightning_distill.sweeps.records import read_jobs

TASK = "my_metrics.Spelling"


@pytest.fixture
def task(monkeypatch):
    """A task from outside the package, which settings may call."""
    module = ModuleType("my_metrics")

    class Spelling:
        metrics = (Metric("typos", "typos", "minimize", 1, "per 1000 words"),
                   Metric("correct", "correct", "maximize", 2, "share of words"))  # fmt: skip

    Spelling.__module__, Spelling.__qualname__ = "my_metrics", "Spelling"
    module.Spelling = Spelling
    monkeypatch.setitem(sys.modules, "my_metrics", module)
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", "my_metrics")
    return TASK


def optuna_directions(names, task):
    node = {"d": "${directions:${names},${task}}", "names": names, "task": task}
    return list(OmegaConf.create(node).d)


@pytest.mark.parametrize("key", ["accuracy", "f1", "bleu", "chrf", "rouge_l", "perplexity"])
def test_metrics_of_tasks_are_objectives(key):
    assert f"student.{key}" in objective_metrics()
    assert problems_of_objectives([f"student.{key}"]) == []


def test_optuna_maximizes_what_is_better_when_larger():
    names = ["student.accuracy", "student.nll", "cost.student_tokens_per_second"]
    assert optuna_directions(names, "x.Y") == ["maximize", "minimize", "maximize"]


def test_a_task_from_outside_declares_its_own_metrics(task):
    names = ["student.correct", "student.typos"]
    assert problems_of_objectives(names, task) == []
    assert optuna_directions(names, task) == ["maximize", "minimize"]
    assert [one.label for one in task_metrics([task])][-2:] == ["typos", "correct"]
    assert "There is:" in problems_of_objectives(["student.corect"], task)[0]


def test_a_task_that_settings_may_not_call_declares_nothing(task, monkeypatch):
    monkeypatch.delenv("LIGHTNING_DISTILL_ALLOW")
    assert problems_of_objectives(["student.correct"], task)


def test_a_nested_number_can_be_an_objective():
    assert objectives({"student": {"speed": {"bytes": 7}}}, ["student.speed.bytes"]) == 7.0
    assert objectives({"student": {"nll": 1.0}}, ["student.speed.bytes"]) is None


def test_the_declarations_import_no_torch():
    code = "import sys, lightning_distill.metrics.declarations; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_optunas_sweeper_gets_the_direction_of_each_objective():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    names = "sweep.objectives=[student.accuracy,student.parameters]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["hydra/sweeper=optuna", names], return_hydra_config=True)
    assert list(cfg.hydra.sweeper.direction) == ["maximize", "minimize"]


def test_a_declared_metric_shows_in_the_table_and_the_report(task, tmp_path):
    settings = {name: {} for name in GROUPS} | {"stage": "distill", "seed": 0}
    settings["data"] = {"_target_": task}
    settings["loss"] = {"alpha": 1, "hard_weight": 1}
    settings["student"] = {"max_steps": 1}
    numbers = {"parameters": 10, "nll": 2.0, "typos": 4.26}
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    results = {"status": "finished", "key": "k", "seed": 0, "overrides": [], "cost": {"s": 1}}
    (tmp_path / "results.json").write_text(json.dumps(results | {"student": numbers}))
    rows = read_jobs(tmp_path)
    heads, line = table_cells(rows)
    assert dict(zip(heads, line, strict=True))["typos"] == "4.3"
    assert "student.typos" in str(jobs_table(rows))
    assert csv_rows(rows)[0]["student.typos"] == 4.26
