"""Tokenizers that put a token before each text, as Llama's and Gemma's do."""

import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_distill.constants import IGNORED
from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.storage.artifacts import Store
from lightning_distill.transfer.alignment import Aligner, align
from lightning_distill.transfer.cached import Cached

TEXTS = [f"{i} soft targets of a teacher, naïve {i * i}" for i in range(60)]


def tokenizer_of(bos=True, size=300):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture
def make(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))

    def make(bos=True, **settings):
        settings = {"isolate_documents": False, "path": str(tmp_path / "a.jsonl")} | settings
        data = CausalLM(Text, 16, 4, 300, **settings)
        data.prepare(Store(tmp_path / "outputs"), tokenizer_of(bos))
        return data

    return make


@pytest.mark.parametrize("settings", [{}, {"isolate_documents": True}])
def test_documents_are_those_of_the_tokenizer_and_each_block_begins_with_its_token(make, settings):
    """lm-evaluation-harness#1465"""
    data = make(**settings)
    train = data._tokens["train"].tolist()
    texts = data.tokenizer.decode(train).replace("<bos>", "").split("<eos>")[:-1]
    assert train == [i for text in texts for i in [*data.tokenizer(text)["input_ids"], 0]]
    blocks, predicted = data.examples("train"), 0
    for index in range(len(blocks)):
        block = blocks[index]
        assert block["input_ids"][0] == 1
        assert 1 not in block["labels"]
        follows = block["input_ids"][1:], block["labels"][:-1]
        known = (follows[1] != IGNORED) & (torch.arange(15) < len(train) - 1 - index * 16 - 1)
        assert torch.equal(follows[0][known], follows[1][known])
        predicted += int((block["labels"] != IGNORED).sum())
    if not settings:
        size = sum(len(text.encode()) for text in texts)
        assert predicted == len(train) - train.count(1)
        assert data.bytes_per_token("train") == pytest.approx(size / predicted)


def test_a_tokenizer_without_it_gives_none(make):
    data = make(bos=False)
    assert 1 not in data._tokens["train"]
    assert data.examples("train")[1]["input_ids"][0] == data._tokens["train"][16]


def test_a_stream_has_it_too(make):
    data = make(streaming=True, held_out_documents=3)
    stream = data.examples("train")
    order = iter(stream.begin(None, 0, 1, 100, num_states=9))
    blocks = [stream[next(order)] for _ in range(20)]
    assert all(block["input_ids"][0] == 1 and 1 not in block["labels"] for block in blocks)
    text = data.tokenizer.decode(torch.cat([block["input_ids"] for block in blocks]))
    assert "<eos><bos>" in text


@pytest.mark.parametrize("student_bos", [False, True])
@pytest.mark.parametrize("teacher_bos", [False, True])
def test_it_is_no_text_between_two_tokenizers(student_bos, teacher_bos):
    student, teacher = tokenizer_of(student_bos), tokenizer_of(teacher_bos, 280)
    plain = student("soft targets", add_special_tokens=False)["input_ids"]
    ids = [*([1] * student_bos), *plain, 0, *([1] * student_bos), *plain]
    bos = Aligner(student, teacher).bos
    aligned = align(ids, list(range(len(ids))), student, teacher, bos)
    text = "<bos>" * teacher_bos + "soft targets"
    assert teacher.decode(aligned.ids) == f"{text}<eos>{text}"
    pairs = [
        (student.decode(ids[: i + 1]), teacher.decode(aligned.ids[: j + 1]))
        for i, j in aligned.pairs
    ]
    assert all(a.replace("<bos>", "") == b.replace("<bos>", "") for a, b in pairs)
    texts = [a for a, _ in pairs]
    assert any(a.endswith("targets") for a in texts)
    assert any(a.endswith("<eos>") for a in texts)
    assert any(a.endswith("<bos>") for a in texts) == (student_bos and teacher_bos)


def test_the_manifest_of_a_cache_says_whether_its_examples_have_it(make):
    cached = Cached(None, "topk", 2, 0, [1], 16)
    teacher = SimpleNamespace(hash="t")
    tokens = [cached.made_from(make(b), teacher)["beginning-of-text token"] for b in (True, False)]
    assert tokens == ["<bos>", None]
