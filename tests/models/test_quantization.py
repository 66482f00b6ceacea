"""Quantized teachers: the error of their predictions, and the memory that is saved."""

import json

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.inspection import count_parameters, weight_bytes

pytest.importorskip("torchao")

from lightning_distill.models.quantization import PackedInt4, quantize

V = 50
BATCH = {"input_ids": torch.arange(3, 13)[None], "position_ids": torch.arange(10)[None]}
MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=64, n_layer=2, n_head=4)),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(BATCH["input_ids"]).logits


def test_int4_rounds_to_one_of_sixteen_levels_per_group_with_an_error_below_one_step():
    weight = torch.randn(6, 32)
    packed = PackedInt4.from_weight(weight, 16)
    assert packed.packed.numel() == weight.numel() / 2
    unpacked, groups = packed.unpacked(torch.float32).view(6, 2, 16), weight.view(6, 2, 16)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    assert ((unpacked - groups).abs() <= 1.001 * step[..., None]).all()
    assert all(len(row.unique()) <= 16 for group in unpacked for row in group)


def test_a_product_with_int4_weights_equals_one_with_the_unpacked_weights():
    layer, inputs = nn.Linear(32, 6), torch.randn(2, 3, 32)
    packed = PackedInt4.from_weight(layer.weight.detach(), 16)
    expected = nn.functional.linear(inputs, packed.unpacked(torch.float32), layer.bias)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    torch.testing.assert_close(layer(inputs), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(inputs).float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 9, 1e-2), ("int4", 5.5, 0.2)])
def test_quantized_layers_take_fewer_bits_and_predict_nearly_the_same(name, kind, bits, error):
    model = MODELS[name]()
    expected, before, count = logits(model), weight_bytes(model), count_parameters(model)
    output = model.get_output_embeddings().weight
    rest = 4 * sum(p.numel() for n, p in model.named_parameters() if p.ndim < 2 or "wpe" in n)
    rest += 4 * sum({id(e.weight): e.weight.numel() for e in _embeddings(model)}.values())
    quantize(model, kind)
    assert model.get_output_embeddings().weight is output  # the chunked loss multiplies by it
    assert count_parameters(model) == count
    assert pretrained.is_quantized(model)
    assert weight_bytes(model) - rest <= (before - rest) * bits / 32
    difference = (logits(model) - expected).abs().max()
    assert 0 < difference < error * expected.abs().max()


def _embeddings(model):
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_model_can_be_frozen_moved_and_cast(kind):
    model = MODELS["llama"]()
    quantize(model, kind)
    expected = logits(model)
    frozen = Frozen(model, V)
    assert frozen.predict.head is not None
    torch.testing.assert_close(frozen(BATCH).logits(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frozen.cpu()(BATCH).logits(), expected, rtol=1e-4, atol=1e-5)
    halved = frozen.to(torch.bfloat16)(BATCH).logits()
    torch.testing.assert_close(halved, expected, rtol=0.1, atol=0.05)
    assert pretrained.is_quantized(frozen.model)
    assert next(frozen.to("meta").model.parameters()).device.type == "meta"


def test_a_model_without_layers_that_can_be_quantized_is_refused():
    tiny = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=6, n_layer=1, n_head=2, n_inner=6))
    with pytest.raises(ConfigError, match=r"teacher.quantization=int4: .* no linear layer"):
        quantize(tiny, "int4")


@pytest.mark.slow
def test_each_quantization_of_a_teacher_has_its_own_cache_and_similar_scores(in_process, tmp_path):
    outputs = f"paths.outputs={tmp_path}"
    in_process(
        *("stage=teacher", "teacher.max_steps=60", outputs),
        f"hydra.run.dir={tmp_path / 'teacher'}",
    )
    (trained,) = (tmp_path / "artifacts" / "teacher").glob("*/model.safetensors")
    results = {}
    for kind in ("null", "int8", "int4"):
        folder = tmp_path / kind
        in_process(
            *("teacher=pretrained", f"teacher.name={trained.parent}", "teacher.max_steps=0"),
            *(
                f"teacher.quantization={kind}",
                "transfer=cached",
                outputs,
                f"hydra.run.dir={folder}",
            ),
        )
        results[kind] = json.loads((folder / "results.json").read_text())
    caches = list((tmp_path / "artifacts" / "predictions").glob("*/manifest.json"))
    assert len({json.loads(file.read_text())["made_from"]["teacher"] for file in caches}) == 3
    unquantized = results["null"]["teacher"]
    for kind, error in (("int8", 1e-3), ("int4", 2e-2)):
        teacher = results[kind]["teacher"]
        assert teacher["parameters"] == unquantized["parameters"]
        assert teacher["nll"] != unquantized["nll"]
        assert teacher["nll"] == pytest.approx(unquantized["nll"], abs=error)
        student, expected = results[kind]["student"], results["null"]["student"]
        assert student["nll"] == pytest.approx(expected["nll"], abs=2e-2)
