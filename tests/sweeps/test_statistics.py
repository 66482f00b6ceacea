"""Student's t against tables and written-out values."""

import pytest

from lightning_distill.sweeps.statistics import confidence_half_width, mean_difference, t_quantile

# Two-sided 95 %, from the table of any textbook; 99 % below it.
TABLE = {
    (0.975, 1): 12.7062047,
    (0.975, 2): 4.3026527,
    (0.975, 3): 3.1824463,
    (0.975, 4): 2.7764451,
    (0.975, 9): 2.2621572,
    (0.975, 30): 2.0422725,
    (0.975, 120): 1.9799304,
    (0.975, 10**6): 1.9599664,
    (0.995, 2): 9.9248432,
    (0.995, 5): 4.0321430,
    (0.95, 10): 1.8124611,
    (0.5, 7): 0.0,
}


@pytest.mark.parametrize(("at", "value"), TABLE.items())
def test_quantiles_equal_the_tables(at, value):
    assert t_quantile(*at) == pytest.approx(value, abs=2e-6)


def test_one_degree_of_freedom_is_the_cauchy_distribution():
    assert t_quantile(0.75, 1) == pytest.approx(1.0, abs=1e-9)


def test_the_interval_of_three_seeds_equals_a_hand_calculation():
    assert confidence_half_width([4.2, 4.3, 4.4]) == pytest.approx(4.3026527 * 0.1 / 3**0.5)
    assert confidence_half_width([4.2]) is None


def test_welchs_interval_equals_a_hand_calculation():
    # Variances 1 and 4, three values each: error² = 5/3, freedom = (5/3)² / (1/18 + 16/18) = 50/17.
    lead, noise = mean_difference([1.0, 2.0, 3.0], [4.0, 6.0, 8.0])
    assert lead == 4.0
    assert noise == pytest.approx(t_quantile(0.975, 50 / 17) * (5 / 3) ** 0.5)


def test_welch_equals_students_test_for_equal_variances_and_counts():
    _, noise = mean_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert noise == pytest.approx(2.7764451 * (2 / 3) ** 0.5, abs=1e-6)


def test_a_single_value_has_no_interval():
    assert mean_difference([1.0], [2.0, 3.0]) == (1.5, None)
