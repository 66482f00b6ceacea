"""Folders whose weights or config are not what they seem."""

import json

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_distill.data.tokenizer import train_tokenizer

TEXTS = ["a small student learns from its teacher"] * 20
SIZES = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES, eos_token_id=5)).save_pretrained(tmp_path / "model")
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.fixture
def distill(in_process, tmp_path):
    def distill(*overrides, expect=0):
        run = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        places = f"paths.outputs={tmp_path / 'outputs'}", f"hydra.run.dir={run}"
        return in_process(*overrides, *places, expect=expect)

    return distill


WITHOUT = {
    "the output layer": lambda w: {k: x for k, x in w.items() if k != "lm_head.weight"},
    "a layer": lambda w: {k: x for k, x in w.items() if "layers.1." not in k},
    "its names": lambda w: {f"_orig_mod.{k}": x for k, x in w.items()},
}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_teacher_with_random_weights_is_refused(what, folder, distill):
    """transformers#48722"""
    rewrite(folder, WITHOUT[what])
    role = "teacher=pretrained", f"teacher.name={folder}", "teacher.max_steps=0"
    error = distill(*role, expect=2).stderr
    assert "They would be random" in error


def test_a_student_may_lack_an_output_layer_and_no_other(folder, distill):
    rewrite(folder, WITHOUT["the output layer"])
    role = "student=pretrained", f"student.name={folder}"
    assert "start at random: lm_head.weight" in distill(*role, "loss.alpha=0").stdout
    rewrite(folder, WITHOUT["a layer"])
    assert "They would be random" in distill(*role, "loss.alpha=0", expect=2).stderr


def test_weights_of_16_bits_are_not_trained_by_adamw(folder, distill):
    """Lightning#5140"""
    rewrite(folder, lambda w: {k: x.half() for k, x in w.items()})
    role = "student=pretrained", f"student.name={folder}", "student.dtype=float16"
    assert "trainer.precision=16-mixed" in distill(*role, "loss.alpha=0", expect=2).stderr


def test_the_students_texts_end_where_its_examples_do(folder, distill, tmp_path):
    """LlamaFactory#9338: the folder's config names another token than its tokenizer does."""
    distill("student=pretrained", f"student.name={folder}", "loss.alpha=0")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run0" / "student")
    assert student.generation_config.eos_token_id == [0, 5]


def test_a_teacher_of_independent_labels_is_refused(distill, tmp_path):
    """infinity#662"""
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    config = BertConfig(**SIZES, **labels, problem_type="multi_label_classification")
    folder, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    BertForSequenceClassification(config).save_pretrained(folder)
    train_tokenizer(TEXTS, 300).save_pretrained(folder)
    rows.write_text(
        "\n".join(json.dumps({"text": f"a {i}", "label": "ab"[i % 2]}) for i in range(200))
    )
    settings = "data=classification", f"data.path={rows}", "teacher=pretrained"
    role = *settings, f"teacher.name={folder}"
    assert (
        "problem_type=multi_label_class" in distill(*role, "teacher.max_steps=0", expect=2).stderr
    )
    distill(*role, "teacher.max_steps=2", "stage=teacher")


CODE = {
    "configuration_mine.py": "from transformers import LlamaConfig\n\n\n"
    "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n",
    "modeling_mine.py": "from transformers import LlamaForCausalLM\n"
    "from .configuration_mine import MineConfig\n\n\n"
    "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n",
}


def test_a_teacher_with_code_of_its_own_is_loaded_again_after_its_training(folder, distill):
    """transformers#20884"""
    for name, text in CODE.items():
        (folder / name).write_text(text)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "configuration_mine.MineConfig"}
    classes["AutoModelForCausalLM"] = "modeling_mine.Mine"
    config |= {"model_type": "mine", "architectures": ["Mine"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    role = "teacher=pretrained", f"teacher.name={folder}", "teacher.max_steps=2"
    assert "code of its own" in distill(*role, expect=2).stderr
    distill(*role, "teacher.trust_remote_code=true")


def test_weights_of_other_shapes_than_config_json_says_are_refused(folder, distill):
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 310}
    (folder / "config.json").write_text(json.dumps(config))
    role = "teacher=pretrained", f"teacher.name={folder}", "teacher.max_steps=0"
    assert "their shapes are not those of config.json" in distill(*role, expect=2).stderr


def test_samples_are_not_drawn_by_the_folders_sampling_settings(folder, make_data):
    """transformers#35045"""
    data = make_data()
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = data.sample_answer(model, 0, None, seed=1)
    own = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "min_p": 0.9}
    for key, value in own.items():
        setattr(model.generation_config, key, value)
    assert data.sample_answer(model, 0, None, seed=1) == plain
    assert model.generation_config.min_p == 0.9
