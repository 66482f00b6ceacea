"""Folders of models as people have them."""

import json

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tokenizer import tokenizer_hash, train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.models.pretrained import fingerprint, load

TEXTS = ["a small student learns from its teacher"] * 20


@pytest.fixture
def folder(tmp_path):
    config = LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=32,
                         num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path)
    return tmp_path


def test_an_adapter_without_its_model_is_named_as_such(tmp_path):
    """torchtune#2520"""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConfigError, match="holds a PEFT adapter without its model"):
        load(str(tmp_path), None, "auto", False, CausalLM)


def test_contradictory_sampling_settings_are_repaired_before_training(folder, tmp_path, caplog):
    """transformers#29988"""
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 2})
    )
    model = load(str(folder), None, "auto", False, CausalLM)
    assert "sampling settings are reset" in caplog.text
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.generation_config.eos_token_id == 2


def test_the_token_that_closes_a_text_is_part_of_the_keys(folder):
    """axolotl#1265"""
    tokenizer = train_tokenizer(TEXTS, 300)
    before, weights = tokenizer_hash(tokenizer), fingerprint(str(folder), None)
    tokenizer.eos_token = "a"
    tokenizer.save_pretrained(folder)
    assert tokenizer_hash(tokenizer) != before
    assert fingerprint(str(folder), None) != weights
