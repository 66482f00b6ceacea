"""ONNX graphs of many architectures: the logits at other batch sizes, lengths and paddings than
those that the graph was traced with."""

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ConvNextConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    ModernBertConfig,
    Qwen3Config,
    ViTConfig,
)

from lightning_distill.errors import ConfigError
from lightning_distill.export import onnx
from lightning_distill.export.example_inputs import example_batches

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
GEMMA = {"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 2}
MAMBA = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BERT = VIT | {"vocab_size": 60, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS = {
    "granite": GraniteConfig(**SIZE, embedding_multiplier=9.0, logits_scaling=2.0),
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=64),
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
    "gemma2": Gemma2Config(**SIZE | GEMMA),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=4),
    "mamba2": Mamba2Config(**MAMBA, num_heads=4, head_dim=8, n_groups=1),
}


class Text:
    """The part of a DistillationData that `example_batches` uses."""

    auto_class, is_generative, continues_prompt = AutoModelForCausalLM, True, True

    def __init__(self, length):
        self.length = length

    def examples(self, split):
        assert split == "test"
        return [{"input_ids": torch.randint(0, 60, (self.length,))} for _ in range(5)]


class Labeled:
    """Images, or texts of one length, each with one label."""

    def __init__(self, example):
        self.is_generative, self.example = False, example

    def examples(self, split):
        return [{**self.example(), "labels": torch.tensor(1)} for _ in range(5)]

    def loader(self, examples, batch_size):
        return DataLoader(examples, batch_size)


def image():
    return {"pixel_values": torch.randn(1, 8, 8)}


def text():
    mask = (torch.arange(9) < torch.randint(3, 10, ())).long()
    return {"input_ids": torch.randint(0, 60, (9,)), "attention_mask": mask}


LABELS = {"num_labels": 3}
CLASSIFIERS = {
    "vit": (ViTConfig(image_size=8, patch_size=2, num_channels=1, **VIT, **LABELS), image),
    "convnext": (
        ConvNextConfig(
            num_channels=1, patch_size=1, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1], **LABELS
        ),
        image,
    ),
    "modernbert": (ModernBertConfig(**BERT, **LABELS), text),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "vit" else pytest.mark.long) for n in CLASSIFIERS]
)
def test_the_graph_of_a_classifier_gives_its_logits_at_any_batch_size(tmp_path, name):
    config, example = CLASSIFIERS[name]
    images = example is image
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model, data = auto.from_config(config).eval(), Labeled(example)
    onnx.make_exportable(model)
    batches = example_batches(model, data)
    assert [len(next(iter(batch.values()))) for batch in batches] == [2, 3, 1]
    onnx.export_graph(model, batches[0], tmp_path / "model.onnx")
    largest, difference = onnx.compare_outputs(model, tmp_path / "model.onnx", batches)
    assert largest > 1e-3
    assert difference < onnx.TOLERANCE * largest


def build(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_example_batches_have_the_inputs_of_a_causal_language_model():
    """GPT-2 also accepts token types, which the data lacks."""
    example, *_ = example_batches(build(CONFIGS["gpt2"]), Text(20))
    assert [*example] == ["input_ids", "attention_mask", "position_ids"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "granite" else pytest.mark.long) for n in CONFIGS],
)
def test_a_graph_gives_the_models_logits_at_sizes_it_was_not_traced_with(tmp_path, name):
    model = build(CONFIGS[name])
    onnx.make_exportable(model)
    file = tmp_path / "model.onnx"
    onnx.export_graph(model, example_batches(model, Text(20))[0], file)
    largest, difference = onnx.compare_outputs(model, file, example_batches(model, Text(37)))
    assert largest > 0.1
    assert difference < onnx.TOLERANCE * largest


@pytest.mark.long
def test_a_graph_with_a_fixed_size_is_refused(tmp_path):
    model = build(MambaConfig(**MAMBA))
    examples, file = example_batches(model, Text(20)), tmp_path / "model.onnx"
    onnx.export_graph(model, examples[0], file)
    with pytest.raises(ConfigError, match="MambaForCausalLM rejects a batch of") as refused:
        onnx.require_equal_outputs(model, file, examples)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_a_graph_that_differs_is_refused_with_the_numbers(tmp_path):
    model = build(CONFIGS["llama"])
    file = tmp_path / "model.onnx"
    onnx.export_graph(model, example_batches(model, Text(20))[0], file)
    with torch.no_grad():
        model.lm_head.weight[3] += 0.01
    with pytest.raises(ConfigError, match=r"differ from the student's by up to 0\.\d+"):
        onnx.require_equal_outputs(model, file, example_batches(model, Text(20)))
