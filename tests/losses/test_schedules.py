"""Temperature and alpha over the steps of a run."""

import math

import pytest

from lightning_distill.errors import ConfigError
from lightning_distill.losses.schedules import LossWeights, make_schedule


def values(setting, max_steps=10, steps=range(11)):
    schedule = make_schedule("loss.alpha", setting)
    return [schedule.at(step, max_steps) for step in steps]


def test_a_number_stays_what_it_is():
    assert set(values(0.3)) == {0.3}


def test_a_linear_schedule_takes_the_whole_run_at_an_even_pace():
    assert values({"shape": "linear", "start": 4, "end": 1}) == pytest.approx(
        [4 - 0.3 * step for step in range(11)]
    )


def test_a_schedule_of_some_steps_stays_at_its_end():
    found = values({"start": 0, "end": 1, "steps": 4})
    assert found == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]


def test_a_schedule_of_one_step_is_at_its_end_after_it():
    assert values({"start": 0, "end": 1, "steps": 1}, steps=[0, 1, 2]) == [0, 1, 1]


def test_a_run_without_steps_is_at_the_end():
    assert values({"start": 4, "end": 1}, max_steps=0, steps=[0]) == [1]


def test_a_cosine_is_half_way_in_the_middle_and_flat_at_its_ends():
    found = values({"shape": "cosine", "start": 4, "end": 2})
    assert (found[0], found[5], found[10]) == pytest.approx((4, 3, 2))
    assert found[2] == pytest.approx(3 + math.cos(math.pi * 0.2))
    assert found[0] - found[1] < found[4] - found[5]


def test_a_warmup_ends_after_a_tenth_of_the_run():
    found = values({"shape": "warmup", "end": 0.5}, max_steps=100, steps=[0, 5, 10, 50])
    assert found == [0, 0.25, 0.5, 0.5]


def test_the_complement_moves_with_alpha():
    balance = LossWeights(1.0, {"end": 1}, "complement")
    balance.set_step(3, 10)
    assert balance.current == pytest.approx({"hard": 0.7, "soft": 0.3})


def test_a_weight_that_is_zero_for_a_while_is_still_used():
    balance = LossWeights(1.0, {"end": 1}, 0)
    assert balance.current["soft"] == 0
    assert balance.uses("soft")
    assert not balance.uses("hard")
    of_the_teacher_alone = LossWeights(1.0, 1.0, "complement")
    assert of_the_teacher_alone.problems == []
    assert not of_the_teacher_alone.uses("hard")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shape": "linear", "start": 1}, "schedule without an end"),
        ({"shape": "linear", "end": None}, "schedule without an end"),
        ({"shape": "sudden", "end": 1}, "one of linear, cosine, warmup"),
        ({"end": 1, "steps": 0}, "steps must be a whole number"),
        ({"end": 1, "steps": 2.5}, "steps must be a whole number"),
        ({"end": 1, "steps": True}, "steps must be a whole number"),
        ({"end": 1, "after": 3}, "^loss.alpha={'end': 1, 'after': 3}: a schedule has .* no after"),
        ({"end": "far"}, r"loss.alpha.end=far must be a number"),
        ({"start": "far", "end": 1}, r"loss.alpha.start=far must be a number"),
        (True, "must be a number"),
    ],
)
def test_what_is_no_schedule_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule("loss.alpha", setting)
