import json
import math

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_distill.data.loaders import TrainSampler
from lightning_distill.data.sources.huggingface import HuggingFace
from lightning_distill.data.sources.python_docs import PythonDocs
from lightning_distill.data.sources.readers import pieces
from lightning_distill.data.sources.text import Text
from lightning_distill.data.splits import HELD_OUT, SPLITS
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tokenizer import tokenizer_hash, train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import Store

TEXTS = [f"Document {i}: soft targets teach the student number {i}." for i in range(60)]


def module(source=Text, **settings):
    return CausalLM(source, 16, 4, 300, isolate_documents=False, **settings)


def documents_of(data):
    return {split: list(documents) for split, documents in data._documents.items()}


def test_each_format_gives_the_same_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert list(Text(str(tmp_path / "a.jsonl")).rows()) == TEXTS
    assert list(Text(str(tmp_path / "a.parquet")).rows()) == TEXTS
    assert list(HuggingFace(str(tmp_path / "saved")).rows()) == TEXTS


def test_a_folder_gives_all_its_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.png").write_text("three")
    assert sorted(Text(str(tmp_path)).rows()) == ["one", "two"]


def test_a_long_text_is_cut_without_loss():
    text = "\n\n".join(f"Paragraph {i} " + "word " * (i % 200) for i in range(200)) + "x" * 9000
    cut = list(pieces(text))
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert max(map(len, cut)) <= 3000
    assert min(map(len, cut[:-1])) >= 1400


def test_splits_share_no_document_and_are_the_same_each_time(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS + TEXTS))
    first = documents_of(module(path=str(tmp_path / "a.jsonl")))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS[::-1]))
    assert documents_of(module(path=str(tmp_path / "a.jsonl"))) == first
    together = [text for split in SPLITS for text in first[split]]
    assert sorted(together) == sorted(TEXTS)
    assert len(first["test"]) == len(first["validation"]) == math.ceil(60 * HELD_OUT)


def test_tokens_are_the_documents_and_decode_to_them(make_data):
    data = make_data()
    for split in SPLITS:
        text = data.tokenizer.decode(data._tokens[split].tolist())
        assert text == "".join(d + "<|endoftext|>" for d in data._documents[split])
        size = sum(len(d.encode()) for d in data._documents[split])
        assert data.bytes_per_token(split) == pytest.approx(size / len(data._tokens[split]))


def test_the_tokenizer_round_trips_any_text_and_keeps_its_end():
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "naïve 東京 🙂\t\r\n  two  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token is None
    assert tokenizer.eos_token_id == 0
    assert tokenizer_hash(tokenizer) == tokenizer_hash(train_tokenizer(TEXTS, 300))
    assert tokenizer_hash(tokenizer) != tokenizer_hash(train_tokenizer(TEXTS[:9], 300))


def test_only_the_train_split_teaches_the_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    seen = []
    monkeypatch.setattr(
        "lightning_distill.data.tokenizer.train_tokenizer",
        lambda documents, *rest: seen.extend(documents) or train_tokenizer(documents, *rest),
    )
    data = module(path=str(tmp_path / "a.jsonl"))
    data.prepare(Store(tmp_path / "outputs"), None)
    assert seen == list(data._documents["train"])


def test_the_order_is_shuffled_anew_in_each_pass_and_resumes_anywhere():
    order = list(TrainSampler(5, 15, seed=3))
    passes = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    assert list(TrainSampler(5, 15, seed=3, start=7)) == order[7:]
    assert list(TrainSampler(5, 15, seed=4)) != order


@pytest.mark.long
def test_pythons_documentation_is_found_and_holds_no_tests():
    documents = list(dict.fromkeys(PythonDocs().rows()))
    assert 1.5e6 < sum(map(len, documents)) < 3e6
    assert len(documents) > 3000
    assert documents == list(dict.fromkeys(PythonDocs().rows()))


def text_case(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return {"path": str(folder / name)}

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: {"path": str(folder / "none.txt")}, "does not exist"),
        (text_case("a.txt", b""), "is empty"),
        (text_case("a.doc", b"text"), "holds no file that ends in .txt"),
        (text_case("a.txt", b"short"), "1 documents"),
        (text_case("a.txt", b"\xff\xfe\x00"), "neither UTF-8 nor UTF-16"),
        (text_case("a.jsonl", b'{"text": "a"}\n{"text": '), "line 2"),
        (
            text_case("a.jsonl", b'{"body": "a"}'),
            r"no column text \(data.column=text\)",
        ),
        (text_case("a.jsonl", b'{"text": 3}'), "text is int, not text"),
        (text_case("a.parquet", b"nonsense"), "not a Parquet file"),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        module(**make(tmp_path)).prepare(Store(tmp_path / "outputs"), None)


def test_a_text_too_short_for_one_block_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": c}) for c in "abcdef"))
    with pytest.raises(ConfigError, match=r"fewer than one block of data\.sequence_length=16"):
        module(path=str(tmp_path / "a.jsonl")).prepare(Store(tmp_path / "outputs"), None)


def test_a_data_set_without_the_column_names_those_it_has(tmp_path):
    datasets.Dataset.from_dict({"body": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match="has no such column; it has: body"):
        HuggingFace(str(tmp_path / "saved"))
