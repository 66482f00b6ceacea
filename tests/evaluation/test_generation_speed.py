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
    describe_speeds,
    measure_speeds,
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
        eos_token_id=list(range(1, 50)),  # nearly every token would end the text
    )
    return LlamaForCausalLM(config)


class FakeModel(nn.Module):
    """Generates in a given time per call and per token, and records its calls."""

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
    generators = {name: FakeModel(name, calls, 0, 0) for name in ("student", "teacher")}
    measure_speeds(generators)
    both = ("student", "teacher")
    round_ = [(name, PROMPT_TOKENS, 1) for _ in range(FIRST_TOKENS) for name in both]
    round_ += [(name, PROMPT_TOKENS, NEW_TOKENS) for name in both]
    assert calls == round_ * (1 + ROUNDS)
    calls.clear()
    generators["teacher"].config.max_position_embeddings = 40
    measure_speeds(generators)
    assert {call[1:] for call in calls} == {(20, 1), (20, 20)}


def test_speed_is_tokens_per_second_and_the_time_to_the_first_token():
    student, teacher = (
        FakeModel("student", [], 0.004, 0.0002),
        FakeModel("teacher", [], 0.012, 0.0006),
    )
    measured = measure_speeds({"student": student, "teacher": teacher})
    assert measured["student"]["tokens_per_second"] == pytest.approx(64 / 0.0168, rel=0.3)
    assert measured["teacher"]["first_token_seconds"] == pytest.approx(0.0126, rel=0.3)
    one = {"bytes": 10, "tokens_per_second": 30.0, "first_token_seconds": 0.1}
    other = {"bytes": 40, "tokens_per_second": 20.0, "first_token_seconds": 0.3}
    text = describe_speeds({"student": one, "teacher": other})
    assert "generates 1.50 times as fast" in text
    assert "3.00 times as soon" in text
    assert "4.00 times smaller" in text


def test_fewer_layers_are_faster_and_an_end_of_text_token_stops_neither_model():
    measured = measure_speeds({"student": llama(1), "teacher": llama(6)})
    assert measured["student"]["tokens_per_second"] > 1.5 * measured["teacher"]["tokens_per_second"]
    assert measured["student"]["first_token_seconds"] < measured["teacher"]["first_token_seconds"]


def test_an_encoder_decoder_model_is_measured():
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    (measured,) = measure_speeds({"student": T5ForConditionalGeneration(config)}).values()
    assert measured["tokens_per_second"] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_equal_those_of_the_saved_weights(tied, tmp_path):
    model = llama(2, tied=tied).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert weight_bytes(model) == sum(one.nbytes for one in saved.values())


def test_quantized_weights_count_by_their_packed_size():
    quantization = pytest.importorskip("torchao.quantization")
    model = llama(2)
    linear = [m for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    before, inside = weight_bytes(model), sum(4 * m.weight.numel() for m in linear)
    rows = sum(m.weight.shape[0] for m in linear)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    # A byte per weight; a scale, and at most a zero point, per row.
    after = weight_bytes(model) - (before - inside) - inside // 4
    assert 0 < after <= 12 * rows
