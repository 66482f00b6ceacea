"""Names of W&B runs."""

import pytest

from lightning_distill.tracking.wandb_naming import MAX_NAME, fit_name, short_overrides


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["loss.temperature=2", "seed=1", "loss.alpha=0.5"], "temperature=2 alpha=0.5"),
        (["teacher.max_steps=9", "student.max_steps=5"], "teacher.max_steps=9 student.max_steps=5"),
        (["student.name=/models/small", "teacher.seed=3"], "name=small teacher.seed=3"),
        (["experiment/job=tuned_baseline", "+optimizer.eps=1"], "job=tuned_baseline eps=1"),
        (["loss.temperature={shape: cosine, end: 1}"], "temperature={shape: cosine, end: 1}"),
        (["seed=4"], ""),
    ],
)
def test_a_short_name_distinguishes_jobs(overrides, name):
    assert short_overrides(overrides) == name


def test_a_name_that_is_too_long_keeps_its_seed():
    name = fit_name("long " * 60 + "seed=12")
    assert len(name) == MAX_NAME
    assert name.endswith(" seed=12")
