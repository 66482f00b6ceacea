"""Positions that do not begin at 0, models with few of them, and vocabularies with gaps."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForSequenceClassification,
)

from lightning_distill.data.tokenizer import check_reads
from lightning_distill.errors import ConfigError
from lightning_distill.models.generation import Sampling, generate
from lightning_distill.models.inspection import max_positions, vocabulary_size
from lightning_distill.models.output_head import Predictor

V = 40


@pytest.fixture
def tokenizer():
    vocab = {f"w{i}": i for i in range(10)} | {"<end>": 35}  # ids 10 to 34 are free
    made = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def test_the_size_of_a_vocabulary_is_that_of_its_largest_id(tokenizer):
    assert len(tokenizer) == 11
    assert vocabulary_size(tokenizer) == 36


def test_a_roberta_decoder_is_read_as_transformers_reads_it():
    """transformers#47496"""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=34, is_decoder=True, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForCausalLM(config).eval()
    ids = torch.randint(2, V, (2, 32))
    batch = {"input_ids": ids, "position_ids": torch.arange(32).expand(2, -1)}
    ours = Predictor(model, V)(batch).logits()
    torch.testing.assert_close(ours, model(ids).logits)
    assert max_positions(model) == 32


def test_a_classifiers_padding_offset_shortens_its_texts(tokenizer):
    """transformers#14243: of RoBERTa's 34 rows of positions, texts have 32."""
    config = RobertaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    check_reads(model, "mine", tokenizer, 32)
    model(torch.full((1, 32), 5))
    with pytest.raises(ConfigError, match=r"data.sequence_length=33 is longer than the 32 pos"):
        check_reads(model, "mine", tokenizer, 33)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


@pytest.mark.parametrize("lengths", [[5, 30], [31, 2], [32, 40], [8]])
def test_generation_stays_within_the_models_positions(tokenizer, lengths):
    """LlamaFactory#5351"""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=V, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    prompts = [torch.randint(0, 10, (n,)) for n in lengths]
    completions = generate(model, tokenizer, prompts, 64, Sampling(0.0), 0, stops=[39])
    for prompt, completion in zip(prompts, completions, strict=True):
        assert len(completion) == max(0, 32 - len(prompt))
    # A prompt's completion does not depend on the others.
    for prompt, completion in zip(prompts, completions, strict=True):
        alone = generate(model, tokenizer, [prompt], 64, Sampling(0.0), 0, stops=[39])
        assert alone == [completion]
