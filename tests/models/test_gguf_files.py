"""Models from GGUF files: what is converted equals what the file was written from."""

import json

import numpy as np
import pytest
import torch
from gguf_models import SIZE, TEXT, export_gguf
from tokenizers import Regex, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.export.gguf_tokenizer import PATTERNS
from lightning_distill.models.gguf import obtain_folder
from lightning_distill.storage.artifacts import Store

gguf = pytest.importorskip("gguf")

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
TIED = {**SIZE, "intermediate_size": 64, "tie_word_embeddings": True}  # 32 weights a block of Q8_0
CONFIGS = {"llama": LlamaConfig(**TIED), "qwen2": Qwen2Config(**TIED)}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["it's a small text of small words, 12 of them\n"] * 50
    trained = train_tokenizer(texts, 300, ["<bos>"])
    trained.chat_template = TEMPLATE
    return trained


@pytest.fixture
def write(tmp_path, tokenizer):
    """Writes a random model to a GGUF file. Returns the model and the file."""

    def make(name="llama", tokenizer=tokenizer):
        return export_gguf(CONFIGS[name], tokenizer, tmp_path)

    return make


def convert(file, tmp_path, dtype="float32"):
    return obtain_folder(Store(tmp_path / "outputs"), "teacher.path", str(file), dtype).folder


def copy_with(file, new, *, quantize=None, without=""):
    """The GGUF file again, with quantized matrices, or without some tensors."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(new, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *sub = field.types
            writer.add_key_value(name, field.contents(), kind, sub[0] if sub else None)
    for tensor in reader.tensors:
        if without and without in tensor.name:
            continue
        kind = quantize if quantize and len(tensor.shape) > 1 else tensor.tensor_type
        data = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return new


@torch.no_grad()
def logits(model):
    return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_a_converted_model_is_the_one_that_was_written(name, write, tokenizer, tmp_path):
    if name == "qwen2":  # transformers divides text as Qwen2 does wherever the model is one
        tokenizer = AutoTokenizer.from_pretrained(save(tokenizer, tmp_path / "plain"))
        (split,) = (one for one, pre in PATTERNS.items() if pre == "qwen2")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    model, file = write(name, tokenizer)
    folder = convert(file, tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(again), logits(model))
    reread = AutoTokenizer.from_pretrained(folder)
    assert reread(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert reread.decode(reread(TEXT)["input_ids"]) == TEXT
    assert reread.chat_template == TEMPLATE
    assert reread.eos_token == tokenizer.eos_token
    again.save_pretrained(tmp_path / "saved")  # transformers cannot save what it read from GGUF


def test_quantized_weights_are_those_that_the_file_stands_for(write, tmp_path):
    _, file = write()
    small = copy_with(file, tmp_path / "small.gguf", quantize=gguf.GGMLQuantizationType.Q8_0)
    again = AutoModelForCausalLM.from_pretrained(convert(small, tmp_path))
    tensor = next(t for t in gguf.GGUFReader(small).tensors if t.name == "blk.1.ffn_up.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(again.model.layers[1].mlp.up_proj.weight.detach(), expected)


def test_a_token_that_begins_each_text_is_kept(write, tokenizer, tmp_path):
    bos = "<bos>"
    tokenizer = AutoTokenizer.from_pretrained(save(tokenizer, tmp_path / "plain"), bos_token=bos)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    _, file = write(tokenizer=tokenizer)
    reread = AutoTokenizer.from_pretrained(convert(file, tmp_path))
    assert reread(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert reread(TEXT)["input_ids"][0] == tokenizer.bos_token_id


def save(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


def test_a_file_is_converted_once_for_each_precision(write, tmp_path):
    _, file = write()
    first = convert(file, tmp_path)
    moved = file.rename(tmp_path / "moved.gguf")
    assert convert(moved, tmp_path) == first
    half = convert(moved, tmp_path, "bfloat16")
    assert half != first
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file, new: new.write_bytes(file.read_bytes()[:-3000]), "Is the file complete"),
        (lambda file, new: new.write_bytes(file.read_bytes()[:200]), "Is the file complete"),
        (
            lambda file, new: new.write_bytes(file.read_bytes().replace(b"llama", b"clamo")),
            "an architecture that transformers reads",
        ),
        (lambda file, new: copy_with(file, new, without="blk.1."), "one part of several"),
    ],
    ids=["without its end", "of 200 bytes", "of an unknown architecture", "without a layer"],
)
def test_a_file_that_cannot_be_converted_is_refused(damage, message, write, tmp_path):
    _, file = write()
    damage(file, tmp_path / "damaged.gguf")
    with pytest.raises(ConfigError, match=message) as refused:
        convert(tmp_path / "damaged.gguf", tmp_path)
    assert "teacher.path=" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("outputs/artifacts/gguf/*[!k]"))


@pytest.mark.slow
def test_teacher_and_student_start_from_one_gguf_file(write, in_process, tmp_path):
    _, file = write()
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    in_process(
        "teacher=gguf", "student=gguf", f"teacher.path={file}", f"student.path={file}",
        outputs, f"hydra.run.dir={tmp_path / 'run'}",
        "teacher.max_steps=0", "optimizer.lr=1e-8",
    )  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["student"]["nll"] == pytest.approx(results["teacher"]["nll"], abs=1e-3)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    assert len(list(tmp_path.glob("outputs/artifacts/gguf/*/manifest.json"))) == 1
