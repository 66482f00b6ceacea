"""Attention isolates packed documents; Mamba and its hybrids carry a state over."""

import pytest
import torch
from transformers import (
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
)

from lightning_distill.errors import ConfigError
from lightning_distill.models.document_isolation import check_isolates

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
