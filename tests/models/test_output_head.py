"""A model's logits made of its last hidden states: the same as its own."""

import logging

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lightning_distill.models.output_head import Predictor, find_head

V = 50
SMALL = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=True)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4)
    ),
}


@pytest.fixture
def batch():
    ids = torch.randint(3, V, (2, 9))
    return {"input_ids": ids, "position_ids": torch.arange(9).expand(2, -1)}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_logits_are_made_of_its_hidden_states(name, batch):
    model = MODELS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so that softcaps and scales show
        split = Predictor(model, V)(batch)
        own = model(input_ids=batch["input_ids"], use_cache=False).logits
    assert split.head is not None
    assert split.states.shape == (2, 9, 16)
    torch.testing.assert_close(split.logits(), own, rtol=1e-5, atol=1e-5)


def test_a_padded_vocabulary_is_cut_to_the_tokenizers(batch):
    model = MODELS["llama"]().eval()
    whole = model(**batch).logits[..., : V - 7]
    for split in (True, False):
        found = Predictor(model, V - 7, split)({**batch, "input_ids": batch["input_ids"]})
        torch.testing.assert_close(found.logits(), whole)


def test_a_head_that_does_more_is_told_once_and_used_as_it_is(batch, caplog):
    class Louder(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = found.logits**2
            return found

    model = Louder(LlamaConfig(**SMALL)).eval()
    with caplog.at_level(logging.INFO):
        predictions = Predictor(model, V)(batch)
    assert len(caplog.records) == 1
    assert "Louder" in caplog.text
    torch.testing.assert_close(predictions.logits(), model(**batch).logits)


def test_trying_a_head_changes_neither_mode_nor_random_state():
    model = MODELS["llama"]().train()
    before = torch.get_rng_state()
    find_head(model)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_predictions_can_be_taken_at_other_times(batch):
    model = MODELS["llama"]().eval()
    predictions = Predictor(model, V)(batch)
    where = torch.tensor([[0, 0, 8], [3, 2, 1]])
    found = predictions.gather(where).logits()
    whole = predictions.logits()
    for b in range(2):
        torch.testing.assert_close(found[b], whole[b, where[b]])
