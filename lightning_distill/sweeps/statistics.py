"""Confidence intervals of means over a few seeds, by Student's t distribution."""

import math
from collections.abc import Sequence
from statistics import mean, variance

CONFIDENCE = 0.95


def confidence_half_width(values: Sequence[float]) -> float | None:
    """Half the width of the mean's confidence interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    error = math.sqrt(variance(values) / len(values))
    return t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * error


def mean_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float | None]:
    """mean(second) − mean(first), and half the width of its confidence interval.

    The variances may be unequal (Welch 1947). None if either has fewer than two values.
    """
    difference = mean(second) - mean(first)
    if min(len(first), len(second)) < 2:
        return difference, None
    parts = [variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return difference, 0.0
    squares = [p**2 / (len(v) - 1) for p, v in zip(parts, (first, second), strict=True)]
    freedom = sum(parts) ** 2 / sum(squares)
    return difference, t_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(sum(parts))


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t distribution at a probability of at least 0.5, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_cdf(value: float, freedom: float) -> float:
    """The distribution function of Student's t at a value of at least 0."""
    return 1 - _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + value**2)) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction.

    It converges fast below the mean of the distribution; above it, I_x(a, b) = 1 − I_{1−x}(b, a).
    NIST Digital Library of Mathematical Functions, 8.17.22.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / a
    value = 1.0
    for n in range(200, 0, -1):  # from the innermost fraction outward
        m = n // 2
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + term / value
    return front / value
