"""What a cache keeps of hidden states, and the output matrices beside them."""

import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from lightning_distill.errors import ConfigError
from lightning_distill.models.predictions import Head, Predictions
from lightning_distill.transfer.cache.hidden_codec import (
    HiddenStateCodec,
    heads_of,
    load_heads,
    save_heads,
)

N, V = 5, 11


def make_head(width, bias=False, scale=1.0, softcap=None, rows=V, dtype=torch.float32):
    return Head(nn.Linear(width, rows, bias=bias, dtype=dtype), scale, softcap)


@pytest.fixture
def heads():
    """Of two teachers; a padded vocabulary, a bias and a scale."""
    return [make_head(6, rows=V + 2), make_head(4, bias=True, scale=0.5)]


@pytest.fixture
def said(heads):
    return [Predictions(7 * torch.randn(N, h.linear.in_features), h, V) for h in heads]


def stored(said, bits):
    kept = HiddenStateCodec([one.head for one in said], bits, V)
    return kept, kept.encode(said, torch.rand(N))


def test_in_32_bits_states_are_as_they_were(said):
    kept, fields = stored(said, 32)
    assert list(fields) == ["states_0", "states_1"]
    for one, found in zip(said, kept.decode(fields), strict=True):
        assert torch.equal(found.states, one.states)
        assert torch.equal(found.logits(), one.logits())
    assert (kept.kl(said, fields) == 0).all()


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (16, 32767)])
def test_whole_numbers_span_each_position_and_miss_by_half_a_step(said, bits, most):
    kept, fields = stored(said, bits)
    for i, (one, found) in enumerate(zip(said, kept.decode(fields), strict=True)):
        codes = fields[f"states_{i}"].long()
        assert (codes.abs().amax(-1) == most).all()
        step = one.states.double().abs().amax(-1, keepdim=True) / most
        error = (found.states.double() - one.states.double()).abs()
        assert (error <= 0.502 * step).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_position_of_zeros_and_one_of_tiny_numbers_come_back(bits):
    states = torch.zeros(2, 6)
    states[1, 3] = 1e-20
    kept, fields = stored([Predictions(states, make_head(6), V)], bits)
    torch.testing.assert_close(kept.decode(fields)[0].states, states, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_stated_size_is_that_of_the_fields(said, bits):
    kept, fields = stored(said, bits)
    assert sum(x.numel() * x.element_size() for x in fields.values()) == N * kept.bytes_per_token
    assert type(kept.bytes_per_token) is int


def test_states_come_back_in_the_heads_dtype_and_any_shape():
    head = make_head(6, dtype=torch.bfloat16)
    kept, fields = stored([Predictions(torch.randn(6, 6).bfloat16(), head, V)], 16)
    (found,) = kept.decode({name: x.unflatten(0, (2, 3)) for name, x in fields.items()})
    assert found.states.shape == (2, 3, 6)
    assert found.states.dtype == torch.bfloat16
    assert found.logits().shape == (2, 3, V)


def test_what_is_lost_is_the_mean_divergence_over_the_teachers(said):
    kept, fields = stored(said, 8)
    expected = torch.zeros(N, dtype=torch.double)
    for true, rough in zip(said, kept.decode(fields), strict=True):
        p, q = rough.logits().double().softmax(-1), true.logits().double().softmax(-1)
        expected += (p * (p / q).log()).sum(-1) / 2
    assert (expected > 1e-7).all()
    torch.testing.assert_close(kept.kl(said, fields).double(), expected, rtol=1e-2, atol=1e-7)


def test_heads_come_back_from_a_folder_and_do_not_learn(tmp_path):
    heads = [
        make_head(6, bias=True, scale=0.5, softcap=3.0),
        make_head(4, dtype=torch.bfloat16),
        make_head(3, rows=V + 2),
    ]
    save_heads(tmp_path, heads)
    found = load_heads(tmp_path)
    assert len(found) == 3
    for ours, theirs in zip(found, heads, strict=True):
        assert (ours.scale, ours.softcap) == (theirs.scale, theirs.softcap)
        assert not any(p.requires_grad for p in ours.linear.parameters())
        states = torch.randn(2, theirs.linear.in_features, dtype=theirs.linear.weight.dtype)
        assert torch.equal(ours.finish(ours.linear(states)), theirs.finish(theirs.linear(states)))
        assert ours.linear.weight.dtype == theirs.linear.weight.dtype
        assert (ours.linear.bias is None) == (theirs.linear.bias is None)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_position_where_a_teacher_has_a_state_without_a_number_is_told(said, bits):
    said[0].states[3, 2], said[1].states[1, 0] = math.nan, -math.inf
    kept, fields = stored(said, bits)
    broken = [number in (1, 3) for number in range(N)]
    assert kept.nonfinite(fields).tolist() == broken
    shaped = {name: field[1:].unflatten(0, (2, 2)) for name, field in fields.items()}
    assert kept.nonfinite(shaped).tolist() == [broken[1:3], broken[3:]]


def test_output_matrices_are_taken_from_models_that_have_finite_ones():
    config = LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    models = [LlamaForCausalLM(config) for _ in range(2)]
    assert [head.linear for head in heads_of(models)] == [model.lm_head for model in models]
    with torch.no_grad():
        models[1].lm_head.weight[2, 3] = math.nan
    with pytest.raises(ConfigError, match="has NaN or Inf in its output matrix"):
        heads_of(models)
    with pytest.raises(ConfigError, match="whose logits are hidden states times an output matrix"):
        heads_of([LlamaForSequenceClassification(config)])
