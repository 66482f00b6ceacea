"""What predictions depend on: another document, later tokens, padding."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from lightning_distill.errors import ConfigError
from lightning_distill.models.probes import check_causal, check_isolates, ignores_left_padding

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ATTENTION = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    ),
}
RECURRENT = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, state_size=4)),
    "jamba": lambda: JambaForCausalLM(
        JambaConfig(
            **SMALL, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_d_state=4
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_isolates_documents(name):
    torch.manual_seed(0)
    model = ATTENTION[name]().train()
    check_isolates(model, "mine")
    assert model.training


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_state_is_refused(name):
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"mine: a .*Set data\.isolate_documents=false"):
        check_isolates(RECURRENT[name](), "mine")


def test_without_weights_the_check_is_whether_the_model_takes_positions():
    with torch.device("meta"):
        check_isolates(ATTENTION["llama"](), "mine")
        with pytest.raises(ConfigError):
            check_isolates(RECURRENT["mamba"](), "mine")


def test_an_encoder_that_reads_later_tokens_is_no_causal_language_model():
    torch.manual_seed(0)
    sizes = {key: size for key, size in SMALL.items() if key != "num_key_value_heads"}
    check_causal(BertLMHeadModel(BertConfig(**sizes, is_decoder=True)), "mine")
    with pytest.raises(ConfigError, match="mine: what a BertLMHeadModel predicts depends on"):
        check_causal(BertLMHeadModel(BertConfig(**sizes)), "mine")


def test_a_decoder_that_reads_later_tokens_translates_nothing():
    torch.manual_seed(0)
    sizes = {key: size for key, size in SMALL.items() if key != "num_key_value_heads"}
    encoder = BertConfig(**sizes)
    for is_decoder in (True, False):
        decoder = BertConfig(**sizes, is_decoder=is_decoder, add_cross_attention=is_decoder)
        config = EncoderDecoderConfig(
            encoder=encoder.to_dict(), decoder=decoder.to_dict(), decoder_start_token_id=0
        )
        model = EncoderDecoderModel(config)
        model.decoder.config.is_decoder = is_decoder
        if is_decoder:
            check_causal(model, "mine")
        else:
            with pytest.raises(ConfigError, match="depends on the tokens that follow"):
                check_causal(model, "mine")


def test_left_padding_is_known_by_what_is_generated():
    torch.manual_seed(0)
    assert ignores_left_padding(ATTENTION["gpt2"]())
    rwkv = RwkvConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    assert not ignores_left_padding(RwkvForCausalLM(rwkv))  # a state that takes no mask


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_excluded_tokens_and_nan_are_not_taken_for_later_tokens(value):
    """Other checks name a NaN; a logit of -inf excludes a token."""
    torch.manual_seed(0)
    model = ATTENTION["llama"]()
    forward = model.forward

    def with_excluded(*inputs, **more):
        output = forward(*inputs, **more)
        output.logits[..., 3] = value
        return output

    model.forward = with_excluded
    check_causal(model, "mine")
    for parameter in model.parameters():
        parameter.data.fill_(value)
    check_causal(model, "mine")
