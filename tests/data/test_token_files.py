import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lightning_distill.data.hashes import sha256
from lightning_distill.data.splits import SplitSources
from lightning_distill.data.token_files import map_tokens, split_on_disk, write_tokens


@given(st.sets(st.text(min_size=1, max_size=9), min_size=3, max_size=60), st.randoms())
@settings(max_examples=40, deadline=None)
def test_documents_on_disk_are_split_like_those_in_memory(tmp_path_factory, texts, dice):
    given = [*texts, *list(texts)[:5]]
    dice.shuffle(given)
    sources = SplitSources(lambda: given, {}, None)
    expected = sources.split(lambda texts: ((sha256(text), text) for text in texts), "documents")
    found = split_on_disk(sources, iter, tmp_path_factory.getbasetemp(), "documents")
    assert {split: list(documents) for split, documents in found.items()} == {
        split: items for split, (items, _) in expected.items()
    }


def test_nothing_is_left_of_the_file_of_documents(tmp_path):
    sources = SplitSources(lambda: ["one", "two", "three"], {}, None)
    found = split_on_disk(sources, iter, tmp_path / "new", "documents")
    assert sorted(text for documents in found.values() for text in documents) == [
        "one",
        "three",
        "two",
    ]
    assert found["train"][-1] == found["train"][0]
    assert list(found["train"]) == [found["train"][0]]
    assert not list((tmp_path / "new").iterdir())


def test_tokens_written_by_the_document_are_the_file_that_safetensors_writes(make_data, tmp_path):
    data = make_data()
    splits = {"train": ["a student", "a small teacher"], "test": ["soft"], "none": []}
    sizes = write_tokens(splits, data.tokenizer, [], [0], tmp_path)
    assert sizes == {"train": 24, "test": 4, "none": 0}
    tensors = {}
    for split, texts in splits.items():
        own = [[*data.tokenizer(text)["input_ids"], 0] for text in texts]
        numbers = [n for n, ids in enumerate(own) for _ in ids]
        tensors[split] = torch.tensor([i for ids in own for i in ids], dtype=torch.int32)
        tensors[f"{split}_documents"] = torch.tensor(numbers, dtype=torch.int32)
    save_file(tensors, tmp_path / "whole.safetensors")
    written = (tmp_path / "tokens.safetensors").read_bytes()
    assert written == (tmp_path / "whole.safetensors").read_bytes()
    assert [file.name for file in tmp_path.glob("*.partial")] == []
    found = map_tokens(tmp_path / "tokens.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_mapped_tokens_are_not_in_memory(tmp_path):
    save_file({"train": torch.zeros(2**26, dtype=torch.int32)}, tmp_path / "a.safetensors")
    before = anonymous()
    tokens = map_tokens(tmp_path / "a.safetensors")["train"]
    assert int(tokens.sum()) == 0
    assert anonymous() - before < 2**26  # of four times that


def anonymous() -> int:
    """Bytes of this process's memory that are in no file."""
    with open("/proc/self/status") as lines:
        (found,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(np.int64(found)) * 1024
