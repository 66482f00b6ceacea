"""A model excludes tokens by logits of −inf: their probability is 0, and 0 · log 0 = 0."""

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from lightning_distill.config.catalog import CONF
from lightning_distill.models.predictions import Head, Predictions
from lightning_distill.transfer.cache.sparse_codec import SparseCodec

# Those that stay finite where the teacher excludes a token that the student does not.
BOUNDED = (
    *("forward_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl"),
    *("total_variation", "universal"),
)
STUDENT, TEACHER = [0.2, 0.1, 0.3, -0.5], [1.0, 0.5, 0.0, -math.inf]
LABELS = torch.tensor([[0]])


def objective(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(
            compose("config", [f"loss={name}", "loss.hard_weight=0", *overrides]).loss
        )


def whole(logits, dtype=torch.float32):
    return Predictions(torch.tensor([[logits]], dtype=dtype), None, len(logits))


def from_bias(logits, dtype=torch.float32):
    """Predictions whose logits are the bias of the output layer."""
    linear = nn.Linear(2, len(logits)).to(dtype)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor(logits))
    return Predictions(torch.ones(1, 1, 2, dtype=dtype), Head(linear, 1.0, None), len(logits))


def probabilities(logits):
    weights = [math.exp(x) for x in logits]
    return [x / sum(weights) for x in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def mix(p, q, share):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


P, Q = probabilities(TEACHER), probabilities(STUDENT)
EXPECTED = {
    "forward_kl": kl(P, Q),
    "jensen_shannon": 0.5 * kl(P, mix(P, Q, 0.5)) + 0.5 * kl(Q, mix(P, Q, 0.5)),
    "skewed_forward_kl": kl(P, mix(P, Q, 0.1)),
    "skewed_reverse_kl": kl(Q, mix(Q, P, 0.1)),
    "total_variation": 0.5 * sum(abs(a - b) for a, b in zip(P, Q, strict=True)),
    "universal": sum(abs(a - b) for a, b in zip(sorted(P), sorted(Q), strict=True)),
}


def test_the_value_of_a_public_report():
    assert EXPECTED["forward_kl"] == pytest.approx(0.246541, abs=5e-7)


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("predictions", [whole, from_bias])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_teachers_excluded_token_counts_as_probability_0(name, predictions, dtype):
    student = predictions(STUDENT, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    terms = objective(name).terms(student, [predictions(TEACHER, dtype)], LABELS)
    assert float(terms.total) == pytest.approx(EXPECTED[name], rel=tolerance)


@pytest.mark.parametrize("name", [*BOUNDED, "reverse_kl", "adaptive_kl", "alpha_beta"])
@pytest.mark.parametrize("predictions", [whole, from_bias])
def test_a_token_that_both_exclude_changes_nothing(name, predictions):
    """Both read the same tokens: the divergence is that of the others."""
    student, teacher = [0.2, 0.1, -math.inf, -0.5], [1.0, 0.5, -math.inf, 0.3]
    value = objective(name).terms(predictions(student), [predictions(teacher)], LABELS).total
    del student[2], teacher[2]
    expected = objective(name).terms(predictions(student), [predictions(teacher)], LABELS).total
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", [*BOUNDED, "reverse_kl", "adaptive_kl", "alpha_beta"])
def test_gradients_are_finite(name):
    z = torch.tensor([[[0.2, 0.1, -math.inf, -0.5]]], requires_grad=True)
    teacher = whole([1.0, 0.5, -math.inf, 0.3])
    objective(name).terms(Predictions(z, None, 4), [teacher], LABELS).total.backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("stored", "k", "draws"), [("topk", 4, 0), ("hybrid", 2, 2), ("sampled", 0, 64)]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_cache_of_an_excluded_token_gives_the_divergence(stored, k, draws, bits):
    codec = SparseCodec(stored, k, draws, (1.0,), bits, 4, (1.0,))
    log_p = whole(TEACHER).logits()[0].log_softmax(-1)
    target = codec.decode(codec.encode_log_p(log_p, torch.tensor([0.5])))
    value = float(objective("forward_kl").terms(whole(STUDENT), target, LABELS).total)
    assert value == pytest.approx(EXPECTED["forward_kl"], abs=0.02)
