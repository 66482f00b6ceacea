"""Rows of the embedding for tokens that are new to a model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.models.embedding import add_rows

ROWS, NEW = 300, ["<|im_start|>", "<|im_end|>"]
SIZE = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS = {
    "tied": ("qwen2", SIZE | {"tie_word_embeddings": True}),
    "untied": ("llama", SIZE | {"tie_word_embeddings": False}),
    "with a bias": ("phi", SIZE),
    "encoder-decoder": (
        "t5",
        {"vocab_size": ROWS, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2}
        | {"d_kv": 16, "decoder_start_token_id": 0},
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer([f"word{i * i}" for i in range(2000)], ROWS)
    tokenizer.add_tokens(NEW, special_tokens=True)
    return tokenizer


def build(kind, settings):
    config = CONFIG_MAPPING[kind](**settings)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config).eval()


@pytest.mark.parametrize(("kind", "settings"), MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_new_rows_leave_the_logits_of_the_others_and_have_their_mean(kind, settings, tokenizer):
    model = build(kind, settings)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms
            parameter.add_(torch.randn_like(parameter))
    inputs = {"input_ids": torch.arange(10)[None]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    before = model(**inputs).logits
    add_rows(model, "name", tokenizer, NEW)
    after = model(**inputs).logits
    assert torch.equal(after[..., :ROWS], before)
    assert after.shape[-1] == model.config.vocab_size == ROWS + len(NEW)
    mean = before.mean(-1, keepdim=True).expand(-1, -1, len(NEW))
    assert torch.allclose(after[..., ROWS:], mean, atol=1e-3)


@pytest.mark.parametrize(("kind", "settings"), MODELS.values(), ids=MODELS)
def test_an_outline_has_the_shapes_of_the_model(kind, settings, tokenizer):
    model = build(kind, settings)
    with torch.device("meta"):
        outline = build(kind, settings)
    for one in (model, outline):
        add_rows(one, "name", tokenizer, NEW)
    assert all(parameter.is_meta for parameter in outline.parameters())
    shapes = [{n: p.shape for n, p in one.named_parameters()} for one in (model, outline)]
    assert shapes[0] == shapes[1]


def test_no_row_is_made_up_for_tokens_that_are_not_new(tokenizer):
    model = build("qwen2", SIZE)
    for new in ([], NEW[:1]):
        add_rows(model, "name", tokenizer, new)
        assert len(model.get_input_embeddings().weight) == ROWS
