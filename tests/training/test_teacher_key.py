"""Every setting of the trainer that can change a teacher's weights is in the teacher's key."""

import inspect
from functools import cache

import lightning
import pytest
from hydra import compose, initialize_config_dir

import lightning_distill.cli.app  # noqa: F401 (registers the resolvers)
from lightning_distill.config.catalog import CONF
from lightning_distill.config.settings import plain_settings
from lightning_distill.experiment.builder import build_run

# What only says where a training runs, what is logged of it and when it is evaluated.
NO_CHANGE = {
    *("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps"),
    *("val_check_interval", "check_val_every_n_epoch", "limit_val_batches", "limit_test_batches"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler"),
}
ARGUMENTS = list(inspect.signature(lightning.Trainer.__init__).parameters)[1:]


@cache
def settings():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain_settings(compose("config", ["logger=none"]))


def identity(**trainer):
    return build_run(
        {**settings(), "trainer": {**settings()["trainer"], **trainer}}
    ).trainers.identity


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_setting_of_lightnings_trainer_counts_unless_it_is_known_not_to_matter(name):
    callback = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "x"}
    value = [callback] if name in ("callbacks", "plugins") else 3
    assert (identity(**{name: value}) == identity()) == (name in NO_CHANGE)


@pytest.mark.parametrize("name", ["compile", "matmul_precision"])
def test_so_does_one_of_ours(name):
    assert identity(**{name: "high"}) != identity()


def test_the_dry_run_of_a_plan_has_the_key_of_the_run():
    profiler = {"_target_": "lightning_distill.planning.step_profiler.StepProfiler", "file": "x"}
    assert identity(callbacks=[profiler]) == identity()


def test_a_shortened_teacher_is_not_the_full_one(in_process, tmp_path):
    """lightning-hydra-template#177"""
    short = in_process("stage=teacher", "+trainer.limit_train_batches=3", "name=short",
                       f"paths.outputs={tmp_path}")  # fmt: skip
    full = in_process("stage=teacher", "name=full", f"paths.outputs={tmp_path}")
    assert "training the teacher" in short.stdout
    assert "training the teacher" in full.stdout
    assert len(list(tmp_path.glob("artifacts/teacher/*/manifest.json"))) == 2
