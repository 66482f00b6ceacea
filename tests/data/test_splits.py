import json
import logging
import math

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_distill.data.hashes import sha256
from lightning_distill.data.sources.huggingface import HuggingFace
from lightning_distill.data.sources.text import Text
from lightning_distill.data.splits import SPLITS, SplitSources
from lightning_distill.data.token_files import split_on_disk
from lightning_distill.errors import ConfigError

TEXTS = [f"document {i}" for i in range(50)]


class Listed:
    def __init__(self, path):
        self.path = path

    def fingerprint(self):
        return str(self.path)


def hashed(source):
    return ((sha256(text), text) for text in source.path)


def split(train, held_out=None, **own):
    settings = {"path": train, **{f"{name}_path": texts for name, texts in own.items()}}
    splits = SplitSources(Listed, settings, held_out).split(hashed, "documents")
    return {name: items for name, (items, _) in splits.items()}


texts = st.lists(st.integers(0, 60).map(str), min_size=6, max_size=60)


@settings(deadline=None)
@given(texts, texts, texts, st.sets(st.sampled_from(["validation", "test"])), st.data())
def test_no_document_is_in_two_splits_that_the_train_source_makes(train, valid, test, named, data):
    own = {name: {"validation": valid, "test": test}[name] for name in named}
    train = [*train, *(f"only in train {i}" for i in range(3))]
    splits = split(train, **own)
    assert list(splits) == ["test", "validation", "train"]
    for name, given_texts in own.items():
        assert sorted(splits[name]) == sorted(set(given_texts))
    made = [text for name in SPLITS if name not in own for text in splits[name]]
    held = {text for given_texts in own.values() for text in given_texts}
    assert sorted(made) == sorted(set(train) - held)
    assert splits == split(data.draw(st.permutations(train)), **own)


@settings(deadline=None)
@given(texts, texts, st.sampled_from([None, 0.1, 0.3, 1, 2]))
def test_the_splits_on_disk_are_those_in_memory(tmp_path_factory, train, test, held_out):
    train = [*train, *(f"only in train {i}" for i in range(6))]
    sources = SplitSources(Listed, {"path": train, "test_path": test}, held_out)
    folder = tmp_path_factory.getbasetemp()
    on_disk = split_on_disk(sources, lambda source: source.path, folder, "documents")
    in_memory = sources.split(hashed, "documents")
    assert {name: list(found) for name, found in on_disk.items()} == {
        name: items for name, (items, _) in in_memory.items()
    }


@pytest.mark.parametrize("held_out", [None, 0.1, 0.02, 0.25, 3, 7])
def test_what_is_held_out_is_a_share_or_a_number(held_out):
    count = held_out if isinstance(held_out, int) else math.ceil(50 * (held_out or 1 / 18) - 1e-9)
    splits = split(TEXTS, held_out)
    assert [len(splits[name]) for name in SPLITS] == [50 - 2 * count, count, count]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (0, "must be a share below 1, as in 0.1, or a whole number"),
        (True, "must be a share"),
        ("a", "must be a share"),
        (1.5, "must be a share below 1"),
        (0.5, "data.held_out=0.5 of 50 documents, for each of test and validation, leaves none"),
        (25, "leaves none to train on"),
    ],
)
def test_what_cannot_be_held_out_is_refused(held_out, message):
    with pytest.raises(ConfigError, match=message):
        split(TEXTS, held_out)


def test_documents_that_are_held_out_elsewhere_are_not_trained_on_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        splits = split(TEXTS, test=TEXTS[:7])
    assert not set(splits["train"]) & set(TEXTS[:7])
    assert "7 documents are in another split or source too" in caplog.text


def test_a_source_without_documents_is_refused_by_its_split():
    with pytest.raises(ConfigError, match="the source of the test split holds no documents"):
        split(TEXTS, test=[])


def test_the_fingerprint_counts_each_source_and_the_share_that_is_used():
    def of(held_out=None, **own):
        return SplitSources(Listed, {"path": "a", **own}, held_out).fingerprint()

    assert of() == {"source": "a"}
    different = [of(), of(0.1), of(2), of(test_path="b"), of(validation_path="b")]
    different.append(of(0.1, test_path="b"))
    assert len({json.dumps(one, sort_keys=True) for one in different}) == len(different)
    both = {"test_path": "b", "validation_path": "c"}
    assert of(0.1, **both) == of(**both)  # nothing is held out


def test_splits_of_a_data_set_are_named(tmp_path):
    parts = {"train": ["a", "b", "c"], "dev": ["d"], "eval": ["e", "f"]}
    saved = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    settings = {"name": str(tmp_path / "saved"), "validation_split": "dev", "test_split": "eval"}
    found = SplitSources(HuggingFace, settings, None).split(
        lambda source: ((sha256(text), text) for text in source.rows()), "documents"
    )
    assert {name: sorted(items) for name, (items, _) in found.items()} == {
        "train": ["a", "b", "c"],
        "validation": ["d"],
        "test": ["e", "f"],
    }
    with pytest.raises(ConfigError, match=r"data.name=.*\(split no\)"):
        SplitSources(HuggingFace, settings | {"test_split": "no"}, None)


def test_a_missing_file_is_named_with_its_key(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    settings = {"path": str(tmp_path / "a.txt"), "validation_path": "/no/b.txt"}
    with pytest.raises(ConfigError, match=r"^data.validation_path=/no/b.txt does not exist"):
        SplitSources(Text, settings, None)
