"""What the pages take as given: a clone, and the reader's files, data sets and models."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from datasets import Dataset, DatasetDict
from gguf_models import export_gguf
from pages import PAGES, ROOT, blocks_of
from PIL import Image
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lightning_distill.data.tokenizer import train_tokenizer

CLONE = ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "examples")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCE = "a teacher student learns soft targets from temperature model small large"
WORDS = SENTENCE.split()


def write_clone(folder: Path) -> None:
    for name in CLONE:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)


def write_files(folder: Path) -> None:
    """Text, conversations, pairs, classes and images, under the names that the pages use."""
    for name in ("my", "train", "dev", "test", "a", "b"):
        _write_texts(folder / f"{name}.jsonl", 1500 if name == "my" else 180)
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").open()]
    (folder / "my_folder").mkdir()
    shutil.copy(folder / "my.jsonl", folder / "my_folder")
    files = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
    rows = {s: [json.loads(line) for line in (folder / f).open()] for s, f in files.items()}
    splits = {split: Dataset.from_list(rows[split]) for split in rows}
    DatasetDict(splits).save_to_disk(folder / "my" / "dataset")
    pairs = [{"en": text, "de": text[::-1]} for text in texts]
    Dataset.from_dict({"translation": pairs}).save_to_disk(folder / "hub" / "name")
    lines = ["en\tde", *("\t".join(pair.values()) for pair in pairs)]
    (folder / "pairs.tsv").write_text("\n".join(lines))
    classes = [f"{text},{('first', 'second')[i % 2]}" for i, text in enumerate(texts)]
    (folder / "my.csv").write_text("\n".join(["text,label", *classes]))
    _write_conversations(folder, texts)
    _write_images(folder / "folder")
    _write_task(folder)


def _write_texts(path: Path, count: int) -> None:
    """Documents of sentences over a few words; other ones in each file."""
    rng = random.Random(path.name)
    with path.open("w") as file:
        for _ in range(count):
            text = " ".join(rng.choices(WORDS, k=rng.randint(10, 60)))
            file.write(json.dumps({"text": text}) + "\n")


def _write_conversations(folder: Path, texts: list[str]) -> None:
    with (folder / "chats.jsonl").open("w") as chats, (folder / "questions.jsonl").open("w") as ask:
        for text in texts:
            question = {"role": "user", "content": text[:40]}
            answer = {"role": "assistant", "content": text[:30:-1]}
            chats.write(json.dumps({"messages": [question, answer]}) + "\n")
            ask.write(json.dumps({"messages": [question]}) + "\n")
    ended = CHAT_TEMPLATE.replace("<|im_end|>", "{{ eos_token }}")  # of a tokenizer trained here
    (folder / "template.jinja").write_text(ended)


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")


def _write_task(folder: Path) -> None:
    """A task of lm-eval, `mine`: which of two words is likelier."""
    rng, questions = random.Random(0), []
    for _ in range(8):
        questions.append({"question": rng.choice(WORDS), "answers": ["yes", "no"], "right": 0})
    (folder / "my_tasks").mkdir()
    data = folder / "my_tasks" / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in questions))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "my_tasks" / "mine.yaml").write_text(yaml.safe_dump(task))


def write_packages(folder: Path) -> None:
    """`my_package`, with an optimizer, and in `my_folder` with the loss that a page defines."""
    (folder / "my_package.py").write_text(
        "import torch\n\n\nclass MyOptimizer(torch.optim.AdamW):\n    pass\n"
    )
    blocks = [block for page in PAGES for block in blocks_of(page)]
    own = "lightning_distill.losses.divergences.jeffreys"
    (config,) = (block for block in blocks if block.language == "yaml" and own in block.code)
    loss = next(b.code for b in blocks if b.page == config.page and "def jeffreys(" in b.code)
    package, conf = (folder / "my_folder" / name for name in ("my_package", "conf/loss"))
    package.mkdir(parents=True)
    conf.mkdir(parents=True)
    (package / "jeffreys.py").write_text(loss)
    (conf / "jeffreys.yaml").write_text(config.code.replace(own, "my_package.jeffreys"))


def llama(tokenizer: PreTrainedTokenizerFast, layers: int = 4, kind: type = LlamaForCausalLM):
    torch.manual_seed(0)
    model = kind(_config(tokenizer, layers))
    with torch.no_grad():  # answers end after a few tokens, also where they are sampled
        embeddings = model.get_input_embeddings().weight
        embeddings.normal_()
        if hasattr(model, "lm_head"):
            model.lm_head.weight.copy_(embeddings[torch.randperm(len(embeddings))])
            model.lm_head.weight[tokenizer.eos_token_id] += embeddings[::3].sum(0)
    return model


def _config(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )


def write_models(folder: Path) -> None:
    """Pretrained models of a few thousand weights, and two files of GGUF."""
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").open()]
    marks = ["<|im_end|>", "<|im_start|>"]
    tokenizer = train_tokenizer(texts, 320, marks)
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, "<|im_end|>"
    other = train_tokenizer(texts, 290, marks)
    other.chat_template, other.eos_token = CHAT_TEMPLATE, "<|im_end|>"
    for name in ("big", "small", "a", "b", "my/model", "instruct", "base"):
        words = other if name == "b" else tokenizer
        llama(words, 2 if name in ("small", "b", "base") else 4).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    classifier = llama(tokenizer, kind=LlamaForSequenceClassification)
    classifier.config.id2label = {0: "first", 1: "second"}
    classifier.config.label2id = {"first": 0, "second": 1}
    classifier.save_pretrained(folder / "my" / "classifier")
    tokenizer.save_pretrained(folder / "my" / "classifier")
    for name, layers in (("model", 30), ("small", 8)):
        made = folder / ".gguf" / name
        made.mkdir(parents=True)
        _, file = export_gguf(_config(tokenizer, layers), tokenizer, made)
        shutil.move(file, folder / f"{name}.gguf")
