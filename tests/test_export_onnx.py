"""Each architecture as an ONNX graph: other batch sizes, lengths and paddings than it was made from
give the model's logits."""

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
from lightning_distill.export import onnx, task

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
    """What `task.examples` asks of a DistillationData."""

    auto_class, is_generative, continues_prompt = AutoModelForCausalLM, True, True

    def __init__(self, length):
        self.length = length

    def examples(self, split):
        assert split == "test"
        return [{"input_ids": torch.randint(0, 60, (self.length,))} for _ in range(5)]


class Wholes:
    """Images, or texts of one length that carry one label."""

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
def test_a_classifiers_graph_gives_its_logits_whatever_the_batch(tmp_path, name):
    config, example = CLASSIFIERS[name]
    images = example is image
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model, data = auto.from_config(config).eval(), Wholes(example)
    onnx.prepare(model)
    batches = task.examples(model, data)
    assert [len(next(iter(batch.values()))) for batch in batches] == [2, 3, 1]
    onnx.trace(model, batches[0], tmp_path / "model.onnx")
    largest, worst = onnx.compare(model, tmp_path / "model.onnx", batches)
    assert largest > 1e-3
    assert worst < onnx.TOLERANCE * largest


def build(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_a_graph_is_made_of_what_a_text_gives_its_model():
    """GPT-2 also knows of segments, which ours have none of."""
    (example, *_) = task.examples(build(CONFIGS["gpt2"]), Text(20))
    assert [*example] == ["input_ids", "attention_mask", "position_ids"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "granite" else pytest.mark.long) for n in CONFIGS],
)
def test_a_graph_gives_the_models_logits_at_sizes_it_was_not_made_from(tmp_path, name):
    model = build(CONFIGS[name])
    onnx.prepare(model)
    file = tmp_path / "model.onnx"
    onnx.trace(model, task.examples(model, Text(20))[0], file)
    largest, worst = onnx.compare(model, file, task.examples(model, Text(37)))
    assert largest > 0.1
    assert worst < onnx.TOLERANCE * largest


@pytest.mark.slow
def test_a_model_whose_graph_has_one_size_alone_is_refused_in_a_line(tmp_path):
    model = build(MambaConfig(**MAMBA))
    examples, file = task.examples(model, Text(20)), tmp_path / "model.onnx"
    onnx.trace(model, examples[0], file)
    with pytest.raises(ConfigError, match="MambaForCausalLM does not read a batch of") as refused:
        onnx.require_same(model, file, examples)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_a_graph_that_differs_is_refused_with_the_numbers(tmp_path):
    model = build(CONFIGS["llama"])
    file = tmp_path / "model.onnx"
    onnx.trace(model, task.examples(model, Text(20))[0], file)
    with torch.no_grad():
        model.lm_head.weight[3] += 0.01
    with pytest.raises(ConfigError, match=r"differ from the student's by up to 0\.\d+"):
        onnx.require_same(model, file, task.examples(model, Text(20)))
