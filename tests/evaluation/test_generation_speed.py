import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from lightning_distill.evaluation.generation_speed import (
    FIRST_TOKENS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    ROUNDS,
    compare,
    speeds,
)
from lightning_distill.models.inspection import weight_bytes


def llama(layers, positions=256, tied=False):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        eos_token_id=list(range(1, 50)),  # nearly whatever it writes would end it
    )
    return LlamaForCausalLM(config)


class Writer(nn.Module):
    """Takes so many seconds a call and a token, and notes its calls."""

    def __init__(self, name, calls, per_call, per_token, positions=None):
        super().__init__()
        self.name, self.calls, self.per_call, self.per_token = name, calls, per_call, per_token
        self.config = SimpleNamespace(max_position_embeddings=positions, is_encoder_decoder=False)
        self.config.get_text_config = lambda: self.config
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return nn.Embedding(7, 1)

    def generate(self, prompt, max_new_tokens, min_new_tokens, **_):
        assert min_new_tokens == max_new_tokens
        self.calls.append((self.name, prompt.shape[1], max_new_tokens))
        time.sleep(self.per_call + self.per_token * max_new_tokens)
        return torch.zeros(1, prompt.shape[1] + max_new_tokens)


def test_models_take_turns_at_the_same_lengths():
    calls = []
    writers = {name: Writer(name, calls, 0, 0) for name in ("student", "teacher")}
    speeds(writers)
    both = ("student", "teacher")
    turn = [(name, PROMPT_TOKENS, 1) for _ in range(FIRST_TOKENS) for name in both]
    turn += [(name, PROMPT_TOKENS, NEW_TOKENS) for name in both]
    assert calls == turn * (1 + ROUNDS)
    calls.clear()
    writers["teacher"].config.max_position_embeddings = 40
    speeds(writers)
    assert {call[1:] for call in calls} == {(20, 1), (20, 20)}


def test_the_numbers_are_tokens_by_time_and_the_time_of_one_token():
    student, teacher = Writer("student", [], 0.004, 0.0002), Writer("teacher", [], 0.012, 0.0006)
    found = speeds({"student": student, "teacher": teacher})
    assert found["student"]["tokens_per_second"] == pytest.approx(64 / 0.0168, rel=0.3)
    assert found["teacher"]["first_token_seconds"] == pytest.approx(0.0126, rel=0.3)
    one = {"bytes": 10, "tokens_per_second": 30.0, "first_token_seconds": 0.1}
    other = {"bytes": 40, "tokens_per_second": 20.0, "first_token_seconds": 0.3}
    said = compare({"student": one, "teacher": other})
    assert "writes 1.50 times as fast" in said
    assert "3.00 times as soon" in said
    assert "4.00 times smaller" in said


def test_fewer_layers_write_faster_and_no_end_of_text_stops_either():
    found = speeds({"student": llama(1), "teacher": llama(6)})
    assert found["student"]["tokens_per_second"] > 1.5 * found["teacher"]["tokens_per_second"]
    assert found["student"]["first_token_seconds"] < found["teacher"]["first_token_seconds"]


def test_an_encoder_decoder_writes_as_many_tokens():
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    (found,) = speeds({"student": T5ForConditionalGeneration(config)}).values()
    assert found["tokens_per_second"] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_the_saved_weights(tied, tmp_path):
    model = llama(2, tied=tied).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert weight_bytes(model) == sum(one.nbytes for one in saved.values())


def test_quantised_weights_count_as_they_lie_in_memory():
    quantization = pytest.importorskip("torchao.quantization")
    model = llama(2)
    linear = [m for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    before, inside = weight_bytes(model), sum(4 * m.weight.numel() for m in linear)
    rows = sum(m.weight.shape[0] for m in linear)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    # A byte a weight; a scale, and at most a zero, a row.
    after = weight_bytes(model) - (before - inside) - inside // 4
    assert 0 < after <= 12 * rows
