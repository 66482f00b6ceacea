"""A frozen model reads a wide batch in parts, with the predictions of the whole."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lightning_distill.models import frozen
from lightning_distill.models.frozen import Frozen

V, B, T = 50, 5, 12


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2))


def llama():
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, num_attention_heads=2, **shape))


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_a_batch_in_parts_has_the_predictions_of_the_whole(monkeypatch, make, rows):
    model = make()
    ids = torch.randint(V, (B, T))
    positions = torch.arange(T // 2).repeat(2).expand(B, -1)
    kept = torch.arange(3)  # a tensor of a batch that has no rows of its own
    batch = {"input_ids": ids, "position_ids": positions, "labels": ids, "kept": kept}
    sizes = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len((*args, kwargs.get("input_ids"))[0])),
        with_kwargs=True,
    )
    whole = Frozen(model, V)(batch).logits()
    sizes.clear()
    monkeypatch.setattr(frozen, "CPU_STATES", rows * T * 16)
    split = Frozen(model, V)
    sizes.clear()
    predictions = split(batch).logits()
    assert sizes == [rows] * (B // rows) + [B % rows] * (B % rows > 0)
    assert torch.allclose(predictions, whole, atol=1e-5)
