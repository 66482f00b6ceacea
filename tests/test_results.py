"""A job's key: what must change it, and what must not."""

import os

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_distill import app
from lightning_distill.errors import CONF
from lightning_distill.results import settings_key


@pytest.fixture(scope="module")
def key():
    assert OmegaConf.has_resolver("job_folder"), app
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: settings_key(compose("config", list(overrides)))


SAME = [
    ["trainer=ddp"],
    ["trainer=ddp", "trainer.devices=2", "data.batch_size=2"],  # of 4 in all, as without it
    ["stage=teacher"],
    ["teacher.device=cpu"],
    ["name=other"],
    ["logger=none"],
    ["paths.outputs=/elsewhere"],
    ["sweep.rerun=all"],
    ["checkpoint_every_n_steps=7"],
    ["loss.temperature=1"],  # 1.0 without it
    ["loss.hidden.distance=cosine"],  # at weight 0
    ["student.lora.rank=0", "student.lora.alpha=1"],
    ["teacher.lora.dropout=0.5"],  # without a rank
]
OTHER = [
    ["seed=1"],
    ["student=xs"],
    ["student.lora.rank=2"],
    ["teacher=l"],
    ["student.max_steps=7"],
    ["loss.temperature=2"],
    ["loss.hidden.weight=1"],
    ["optimizer.lr=0.1"],
    ["data.batch_size=2"],
    ["trainer.devices=2"],
    ["data=text", "data.path=mine", "data.streaming=true"],
    ["transfer=cached"],
    ["trainer.gradient_clip_val=2"],
]
# Beside loss.alpha=0.
WITHOUT_TEACHER = [
    ["loss.temperature=2"],
    ["loss=reverse_kl"],
    ["transfer=cached"],
    ["transfer=on_policy"],
    ["loss.hard_weight=complement"],
    ["loss.alpha=0.0"],
]
STILL_OTHER = [
    ["loss.hard_target=teacher"],
    ["loss.label_smoothing=0.1"],
    ["loss.hidden.weight=1"],
    ["student.initialize=teacher_layers"],
    ["transfer=sequence"],
    ["transfer.num_blocks=3"],
    ["loss.alpha={start: 0, end: 1}"],
    ["loss.hard_weight=0.5"],
    ["teacher=l"],  # which the student is compared with
]


@pytest.mark.parametrize("overrides", SAME, ids=str)
def test_what_changes_no_number_changes_no_key(key, overrides):
    assert key(*overrides) == key()


@pytest.mark.parametrize("overrides", OTHER, ids=str)
def test_what_changes_a_number_changes_the_key(key, overrides):
    assert key(*overrides) != key()


@pytest.mark.parametrize("overrides", WITHOUT_TEACHER, ids=str)
def test_without_a_teacher_what_is_asked_of_it_does_not_matter(key, overrides):
    assert key("loss.alpha=0", *overrides) == key("loss.alpha=0")


@pytest.mark.parametrize("overrides", STILL_OTHER, ids=str)
def test_without_its_predictions_the_rest_still_matters(key, overrides):
    assert key("loss.alpha=0", *overrides) != key("loss.alpha=0")


def test_a_file_that_changed_under_its_name_changes_the_key(key, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    named = ("data=text", f"data.path={tmp_path}")
    first = key(*named)
    assert key(*named) == first
    os.utime(file, ns=(1, 1))
    assert key(*named) != first
    (tmp_path / "b.txt").write_text("another")
    assert key("data=text", f"data.path={file}") != key(*named)
