"""Every divergence against its formula written out in float64; and what is true of all of them."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.nn.functional import softmax

from lightning_distill.config.catalog import CONF
from lightning_distill.errors import ConfigError
from lightning_distill.losses.divergences.adaptive_kl import adaptive_kl
from lightning_distill.losses.divergences.alpha_beta import alpha_beta
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.divergences.jensen_shannon import jensen_shannon
from lightning_distill.losses.divergences.logit_mse import logit_mse
from lightning_distill.losses.divergences.reverse_kl import reverse_kl
from lightning_distill.losses.divergences.skewed_forward_kl import skewed_forward_kl
from lightning_distill.losses.divergences.skewed_reverse_kl import skewed_reverse_kl
from lightning_distill.losses.divergences.total_variation import total_variation
from lightning_distill.losses.divergences.universal import universal
from lightning_distill.losses.objective import Objective
from lightning_distill.models.predictions import Predictions

N, V = 6, 7
LOSSES = sorted(file.stem for file in (CONF / "loss").glob("*.yaml"))


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def mix(weight, p, q):
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


def adaptive(p, q, mass):
    order = sorted(range(len(p)), key=lambda i: -p[i])
    head, held = set(), 0.0
    for i in order:
        if held < mass:
            head.add(i)
        held += p[i]
    gap = [abs(a - b) for a, b in zip(p, q, strict=True)]
    share = sum(gap[i] for i in head) / sum(gap)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def ab(p, q, a, b):
    terms = zip(p, q, strict=True)
    total = sum(
        x**a * y**b - a / (a + b) * x ** (a + b) - b / (a + b) * y ** (a + b) for x, y in terms
    )
    return -total / (a * b)


def sorted_difference(p, q):
    p, q = sorted(p, reverse=True), sorted(q, reverse=True)
    width = max(len(p), len(q))
    p, q = p + [0.0] * (width - len(p)), q + [0.0] * (width - len(q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


# function, settings, longhand (p, q) at one position
LONGHAND = [
    (forward_kl, {}, kl),
    (reverse_kl, {}, lambda p, q: kl(q, p)),
    *(
        (
            jensen_shannon,
            {"beta": b},
            lambda p, q, b=b: b * kl(p, mix(b, p, q)) + (1 - b) * kl(q, mix(b, p, q)),
        )
        for b in (0.1, 0.5, 0.9)
    ),
    (skewed_forward_kl, {"skew": 0.1}, lambda p, q: kl(p, mix(0.1, p, q))),
    (skewed_reverse_kl, {"skew": 0.3}, lambda p, q: kl(q, mix(0.3, q, p))),
    (
        total_variation,
        {},
        lambda p, q: 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True)),
    ),
    (adaptive_kl, {"head_mass": 0.5}, lambda p, q: adaptive(p, q, 0.5)),
    (alpha_beta, {"ab_alpha": 0.2, "ab_beta": 0.7}, lambda p, q: ab(p, q, 0.2, 0.7)),
    (alpha_beta, {"ab_alpha": -0.3, "ab_beta": 1.1}, lambda p, q: ab(p, q, -0.3, 1.1)),
    (universal, {}, sorted_difference),
]
NAMES = [f"{function.__name__} {settings}" for function, settings, _ in LONGHAND]


@pytest.fixture
def logits():
    return torch.randn(2, N, V, dtype=torch.float64) * 2


@pytest.mark.parametrize(("function", "settings", "longhand"), LONGHAND, ids=NAMES)
def test_each_equals_its_formula_written_out(logits, function, settings, longhand):
    z, y = logits
    found = function(z.log_softmax(-1), y.log_softmax(-1), **settings)
    for row in range(N):
        p, q = softmax(y[row], -1).tolist(), softmax(z[row], -1).tolist()
        assert float(found[row]) == pytest.approx(longhand(p, q), abs=1e-10)


@pytest.mark.parametrize(("function", "settings", "longhand"), LONGHAND, ids=NAMES)
def test_each_gradient_is_the_slope_of_its_formula(logits, function, settings, longhand):
    if function is adaptive_kl:
        pytest.skip("no gradient flows through its weights: see the test of their own")
    z, y = logits
    z = z.requires_grad_()
    function(z.log_softmax(-1), y.log_softmax(-1), **settings).sum().backward()
    step = 1e-4
    for row, token in ((0, 0), (1, 3), (4, 6)):
        p = softmax(y[row], -1).tolist()

        def at(shift, row=row, token=token, p=p):
            moved = z[row].detach().clone()
            moved[token] += shift
            return longhand(p, softmax(moved, -1).tolist())

        # Fourth order, so that the rounding of a small step does not hide an error.
        slope = (8 * (at(step) - at(-step)) - at(2 * step) + at(-2 * step)) / (12 * step)
        assert float(z.grad[row, token]) == pytest.approx(slope, abs=1e-10)


LIMITS = [(1, 0), (0, 1), (0.5, -0.5), (0, 0)]  # of alpha_beta


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        *((function, settings) for function, settings, _ in LONGHAND),
        *((alpha_beta, {"ab_alpha": a, "ab_beta": b}) for a, b in LIMITS),
        (logit_mse, {}),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_each_takes_positions_of_any_shape(logits, function, settings):
    q, p = logits.log_softmax(-1)
    shaped = function(q.view(2, 3, V), p.view(2, 3, V), **settings)
    same(shaped.flatten(), function(q, p, **settings))


def test_the_gradient_of_adaptive_kl_is_the_mix_of_both_at_constant_weights(logits):
    z, y = logits
    z = z.requires_grad_()
    adaptive_kl(z.log_softmax(-1), y.log_softmax(-1), head_mass=0.5).sum().backward()
    mixed, z.grad = z.grad, None
    forward_kl(z.log_softmax(-1), y.log_softmax(-1)).sum().backward()
    forward, z.grad = z.grad, None
    reverse_kl(z.log_softmax(-1), y.log_softmax(-1)).sum().backward()
    for row in range(N):
        p, q = softmax(y[row], -1).tolist(), softmax(z[row].detach(), -1).tolist()
        share = (adaptive(p, q, 0.5) - kl(q, p)) / (kl(p, q) - kl(q, p))
        expected = share * forward[row] + (1 - share) * z.grad[row]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-10, atol=1e-10)


def test_mean_squared_error_is_of_logits_and_the_same_at_every_temperature(logits):
    z, y = logits
    expected = [
        sum((a - b) ** 2 for a, b in zip(z[n].tolist(), y[n].tolist(), strict=True)) / V
        for n in range(N)
    ]
    assert logit_mse(z, y).tolist() == pytest.approx(expected, abs=1e-10)
    objective = make("logit_mse", "loss.temperature=3", "loss.hard_weight=0")
    total = objective.terms(*given_logits(z, y), torch.zeros(1, N).long()).total
    assert float(total) == pytest.approx(sum(expected), abs=1e-10)


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_limits_of_each_family(logits):
    q, p = logits.log_softmax(-1)
    forward, reverse = forward_kl(q, p), reverse_kl(q, p)
    same(jensen_shannon(q, p, beta=0), forward)
    same(jensen_shannon(q, p, beta=1), reverse)
    same(jensen_shannon(q, p, beta=1e-7) / 1e-7, forward, 1e-5)
    same(jensen_shannon(q, p, beta=1 - 1e-7) / 1e-7, reverse, 1e-5)
    same(jensen_shannon(q, p, beta=0.3), jensen_shannon(p, q, beta=0.7))
    same(skewed_forward_kl(q, p, skew=0), forward)
    same(skewed_reverse_kl(q, p, skew=0), reverse)
    same(skewed_forward_kl(q, p, skew=1e-9), forward, 1e-6)
    same(adaptive_kl(q, p, head_mass=0), reverse)
    same(adaptive_kl(q, p, head_mass=1), forward)
    same(alpha_beta(q, p, 1, 0), forward)
    same(alpha_beta(q, p, 0, 1), reverse)
    same(alpha_beta(q, p, 1, 1), 0.5 * (p.exp() - q.exp()).square().sum(-1))
    hellinger = 0.5 * ((0.5 * p).exp() - (0.5 * q).exp()).square().sum(-1)
    same(alpha_beta(q, p, 0.5, 0.5), 4 * hellinger)


def test_a_head_of_the_whole_mass_holds_tokens_that_32_bits_lose_beside_1():
    p, q = torch.tensor([[0.0, -30, -31], [0.0, 0.1, 0.2]]).log_softmax(-1)
    assert p.exp().cumsum(-1)[0] == 1
    same(adaptive_kl(q, p, head_mass=1), forward_kl(q, p), 1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.4, 0), (0, 0.6), (0.3, -0.3), (0, 0)])
def test_alpha_beta_goes_on_smoothly_where_its_formula_divides_by_zero(logits, a, b):
    q, p = logits.log_softmax(-1)
    near = alpha_beta(q, p, a + 2e-5, b + 1e-5)
    same(alpha_beta(q, p, a, b), near, 1e-2)


def test_the_mean_squared_error_is_the_high_temperature_limit_of_the_divergence(logits):
    z, y = logits - logits.mean(-1, keepdim=True)
    T = 1e4
    softened = T**2 * forward_kl((z / T).log_softmax(-1), (y / T).log_softmax(-1))
    same(softened, 0.5 * logit_mse(z, y), 1e-3)


def test_universal_takes_two_vocabularies_of_different_size(logits):
    z, y = logits[0], torch.randn(N, V + 4, dtype=torch.float64)
    found = universal(z.log_softmax(-1), y.log_softmax(-1))
    for row in range(N):
        p, q = softmax(y[row], -1).tolist(), softmax(z[row], -1).tolist()
        assert float(found[row]) == pytest.approx(sorted_difference(p, q), abs=1e-10)
    same(universal(y.log_softmax(-1), z.log_softmax(-1)), found)
    q, p = (x.log_softmax(-1).unflatten(0, (2, 3)) for x in (z, y))
    same(universal(q, p).flatten(), found)
    same(universal(p, q).flatten(), found)
    shuffled = z[:, torch.randperm(V)]
    same(universal(shuffled.log_softmax(-1), y.log_softmax(-1)), found)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("name", "beta", "overrides"),
    [("forward_kl", 0.0, []), ("reverse_kl", 1.0, []), ("jensen_shannon", 0.3, ["loss.beta=0.3"])],
)
def test_forward_kl_and_jensen_shannon_agree_with_trl(logits, name, beta, overrides, temperature):
    trl = pytest.importorskip("trl.experimental.gkd")
    z, y = logits[0][None].requires_grad_(), logits[1][None]
    labels = torch.tensor([[1, -100, 0, 6, -100, 2]])
    objective = make(name, f"loss.temperature={temperature}", "loss.hard_weight=0", *overrides)
    ours = objective.terms(*given_logits(z, y), labels).total
    theirs = trl.GKDTrainer.generalized_jsd_loss(
        z, y, labels, beta, temperature, reduction="sum"
    ) * (temperature**2)
    same(ours, theirs, 1e-10)
    (gradient,) = torch.autograd.grad(ours, z)
    same(gradient, torch.autograd.grad(theirs, z)[0], 1e-10)


@cache
def make(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config", [f"loss={name}", *overrides]).loss)


def given_logits(z, y):
    return Predictions(z, None, z.shape[-1]), [Predictions(y, None, y.shape[-1])]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_zero_for_a_perfect_student_and_positive_for_another(name, logits):
    objective = make(name, "loss.hard_weight=0", "loss.temperature=2")
    z, y = (x[None].requires_grad_() for x in logits)
    labels = torch.zeros(1, N).long()
    perfect = objective.terms(*given_logits(y, y.detach()), labels).total
    assert float(perfect) == pytest.approx(0, abs=1e-12)
    assert float(objective.terms(*given_logits(z, y.detach()), labels).total) > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_makes_a_student_like_its_teacher(name, logits):
    objective = make(name, "loss.hard_weight=0")
    z, y = logits[0][None].clone().requires_grad_(), logits[1][None]
    labels = torch.zeros(1, N).long()
    optimizer = torch.optim.Adam([z], lr=0.05)
    first = float(objective.terms(*given_logits(z, y), labels).total)
    for _ in range(300):
        optimizer.zero_grad()
        objective.terms(*given_logits(z, y), labels).total.backward()
        optimizer.step()
    assert float(objective.terms(*given_logits(z, y), labels).total) < 0.1 * first


@pytest.mark.parametrize("name", LOSSES)
@given(st.integers(0, 10_000), st.floats(0.1, 40))
@examples(max_examples=15, deadline=None)
def test_every_loss_stays_finite_and_never_negative(name, seed, scale):
    objective = make(name, "loss.hard_weight=0")
    generator = torch.Generator().manual_seed(seed)
    z, y = torch.randn(2, 1, N, V, generator=generator) * scale
    z = z.requires_grad_()
    total = objective.terms(*given_logits(z, y), torch.zeros(1, N).long()).total
    total.backward()
    assert -1e-4 <= float(total) < math.inf
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("jensen_shannon", "loss.beta=1.5", r"loss.beta=1.5 must be a number from 0 to 1\."),
        ("jensen_shannon", "loss.beta=-0.1", "loss.beta=-0.1 must be a number from 0 to 1"),
        ("jensen_shannon", "loss.beta=half", "loss.beta=half must be a number"),
        ("skewed_forward_kl", "loss.skew=1", "loss.skew=1 must be a number from 0 to below 1"),
        ("skewed_reverse_kl", "loss.skew=2", "loss.skew=2"),
        ("adaptive_kl", "loss.head_mass=2", "loss.head_mass=2 must be a number from 0 to 1"),
        ("alpha_beta", "loss.ab_alpha=nan", "loss.ab_alpha=nan"),
        ("alpha_beta", "loss.ab_alpha=1001", "loss.ab_alpha=1001 must be a number from -1000 to"),
        ("alpha_beta", "loss.ab_beta=1001", "loss.ab_beta=1001 must be a number from -1000 to"),
        ("universal", "loss.hard_target=teacher", "needs a loss for one shared vocabulary"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_training(name, override, message):
    with pytest.raises(InstantiationException) as caught:
        make(name, override)
    assert re.search(message, str(caught.value.__cause__))


def test_a_loss_that_does_not_return_one_value_a_position_is_refused():
    with pytest.raises(ConfigError, match=r"must make \[1\]"):
        Objective(lambda student, teacher: teacher - student, 1.0, 1.0, 1.0, "labels")


@given(st.integers(0, 9999), st.floats(0.1, 10), st.floats(-50, 50))
@examples(max_examples=30, deadline=None)
def test_no_divergence_depends_on_the_order_of_tokens_or_on_a_constant(seed, scale, constant):
    dice = torch.Generator().manual_seed(seed)
    z, y = scale * torch.randn(2, N, V, dtype=torch.float64, generator=dice)
    order = torch.randperm(V, generator=dice)
    for function, settings, _ in LONGHAND:
        before = function(z.log_softmax(-1), y.log_softmax(-1), **settings)
        moved = (z + constant)[:, order].log_softmax(-1), (y - constant)[:, order].log_softmax(-1)
        torch.testing.assert_close(function(*moved, **settings), before, rtol=1e-9, atol=1e-9)


def test_what_a_divergence_of_the_user_refuses_is_told_in_one_line():
    def picky(student, teacher, sharpness):
        raise ValueError(f"sharpness={sharpness} must be even")

    with pytest.raises(ConfigError, match=r"^loss.sharpness=3 must be even\.$"):
        Objective(picky, 1.0, 1.0, 1.0, "labels", sharpness=3)

    def broken(student, teacher):
        raise ValueError("no such kernel")

    with pytest.raises(ConfigError, match=r"^loss: no such kernel\.$"):
        Objective(broken, 1.0, 1.0, 1.0, "labels")


def test_the_adaptive_kl_and_its_papers_code_differ_as_its_docstring_says():
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.25, 0.1, 0.25, 0.4])
    gap = np.abs(p - q)
    forward, reverse = (p * np.log(p / q)).sum(), (q * np.log(q / p)).sum()

    def longhand(head):
        share = gap[head].sum() / gap.sum()
        return share * forward + (1 - share) * reverse

    ours = adaptive_kl(torch.tensor(q).log(), torch.tensor(p).log(), 0.5)
    assert float(ours) == pytest.approx(longhand([0, 1]), rel=1e-12)
    assert round(float(ours), 4) == 0.3586
    assert round(longhand([0]), 4) == 0.3725  # p's cumulated mass is .4, .7, ...
