"""A small selection of what `make test-faults` does."""

import pytest
from kills import kill_at_random

pytestmark = pytest.mark.slow


def test_killed_at_random_moments_a_sweep_loses_nothing_and_ends_at_its_numbers(tmp_path):
    hits = kill_at_random(tmp_path, kills=6, seed=1)
    assert hits.total() >= 6
    assert "student training" in hits
