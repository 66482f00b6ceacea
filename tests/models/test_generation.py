"""What models generate: against a loop without a cache, and the rules that sampling must keep."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_distill.constants import IGNORED
from lightning_distill.models.generation import Sampling, generate, seed_of


@pytest.fixture
def tokenizer(make_data):
    return make_data().tokenizer


@pytest.fixture
def model(tokenizer):
    """With 20 more rows than the tokenizer has tokens, and dropout."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 20, intermediate_size=48, attention_dropout=0.5, **size
    )
    made = LlamaForCausalLM(config)
    torch.nn.init.normal_(made.lm_head.weight, std=0.5)
    return made


BEGINNINGS = [torch.arange(5, 11), torch.arange(40, 42), torch.arange(7, 8)]


def test_the_likeliest_tokens_are_those_of_reading_it_all_anew_each_time(model, tokenizer):
    found = generate(model, tokenizer, BEGINNINGS, 14, Sampling(0.0), 0)
    model.eval()
    for begin, new in zip(BEGINNINGS, found, strict=True):
        text = begin
        while len(text) < 14:
            logits = model(text[None], use_cache=False).logits[0, -1, : len(tokenizer)]
            text = torch.cat([text, logits.argmax()[None]])
            if text[-1] == tokenizer.eos_token_id:
                break
        assert new == text[len(begin) :].tolist()


def test_writing_ends_with_the_end_of_text(model, tokenizer):
    def at_once(_, args, output):
        output[..., tokenizer.eos_token_id] = 100.0

    model.lm_head.register_forward_hook(at_once)
    assert generate(model, tokenizer, BEGINNINGS, 14, Sampling(1.0), 0) == [
        [tokenizer.eos_token_id]
    ] * len(BEGINNINGS)


def test_a_seed_gives_the_same_text_and_leaves_other_dice_alone(model, tokenizer):
    before = torch.get_rng_state()
    once, again, other = (
        generate(model, tokenizer, BEGINNINGS, 14, Sampling(1.0), seed) for seed in (1, 1, 2)
    )
    assert once == again != other
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_rows_behind_the_vocabulary_are_never_written(model, tokenizer):
    found = generate(model, tokenizer, BEGINNINGS * 20, 40, Sampling(50.0), 0)
    ids = {i for new in found for i in new}
    assert max(ids) < len(tokenizer)
    assert len(ids) > 200  # and any other token may be


def test_top_p_leaves_the_likeliest_token(model, tokenizer):
    likeliest = generate(model, tokenizer, BEGINNINGS, 14, Sampling(0.0), 0)
    assert generate(model, tokenizer, BEGINNINGS, 14, Sampling(1.0, top_p=1e-5), 0) == likeliest


def test_a_models_own_habits_of_writing_do_not_count(model, tokenizer):
    sampled = generate(model, tokenizer, BEGINNINGS, 14, Sampling(1.0), 0)
    model.generation_config.update(top_k=1, repetition_penalty=9.0, min_new_tokens=3)
    assert generate(model, tokenizer, BEGINNINGS, 14, Sampling(1.0), 0) == sampled


def test_a_prompt_begins_where_its_document_does_and_ends_before_the_filling(make_data):
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6, 0, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4], [3, 4, 0, 1, 0], [0, 1, 2, 3, 4]]),
        "labels": torch.tensor([[6, 7, 8, 9, 1], [6, IGNORED, 8, IGNORED, 1], [6, 7] + 3 * [-100]]),
    }
    found = [begin.tolist() for begin in make_data().prompt_tokens(batch, 4)]
    assert found == [[5, 6, 7, 8], [7, 8], [5, 6]]


def test_every_combination_has_a_seed_of_its_own():
    seeds = {seed_of(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert max(seeds) < 2**64
