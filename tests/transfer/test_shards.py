"""Shards of predictions, and the blocks that they belong to."""

import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_distill.errors import ConfigError
from lightning_distill.transfer.cache import shards
from lightning_distill.transfer.cache.shards import (
    CachedExamples,
    ShardBatches,
    checksum,
    shard_file,
    shard_ranges,
    write_shard,
)


@given(st.integers(1, 10**6), st.integers(2, 10**5))
def test_every_block_is_in_one_shard_and_no_shard_is_too_large(num_blocks, sequence_length):
    found = shard_ranges(num_blocks, sequence_length)
    assert [found[0].start, found[-1].stop] == [0, num_blocks]
    assert all(a.stop == b.start for a, b in pairwise(found))
    assert all(0 < len(shard) * sequence_length <= shards.SHARD_TOKENS[1] for shard in found)


def test_a_shard_has_some_thousand_tokens_and_one_block_at_least():
    assert [len(shard) for shard in shard_ranges(40, 1000)] == [8] * 5  # of 8,192 tokens at least
    assert [len(shard) for shard in shard_ranges(640, 1000)][:2] == [10, 10]  # 64 shards
    assert len(shard_ranges(640, 2**18)[0]) == 4  # of a million at most
    assert [len(shard) for shard in shard_ranges(3, 2**20)] == [1, 1, 1]
    assert [len(shard) for shard in shard_ranges(3, 10_000)] == [1, 1, 1]


def test_a_checksum_changes_with_what_is_read_and_not_with_its_place():
    block = {"input_ids": torch.arange(4), "labels": torch.arange(4), "pixels": torch.rand(2, 2)}
    plain = checksum(block)
    assert (plain.shape, plain.dtype) == ((8,), torch.uint8)
    assert torch.equal(checksum({**block, "block": torch.tensor(3)}), plain)
    assert torch.equal(checksum({**block, "labels": torch.arange(4).int()}), plain)
    for name, x in block.items():
        other = x.clone()
        other[-1] += 0.25 if x.is_floating_point() else 1
        assert not torch.equal(checksum({**block, name: other}), plain)


@pytest.fixture
def labelled(make_data, tmp_path, monkeypatch):
    """The first 30 blocks in shards of 8, each position labelled with its place in the text."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", (256, 256))
    blocks = make_data().examples("train")
    for number, shard in enumerate(shard_ranges(30, 32)):
        places = torch.stack([32 * i + torch.arange(32) for i in shard])
        sums = torch.stack([checksum(blocks[i]) for i in shard])
        write_shard(shard_file(tmp_path, number), [{"place": places, "checksum": sums}])
    return CachedExamples(blocks, 30, tmp_path)


def test_a_batch_ends_with_its_shard_and_devices_without_one_repeat_the_first_block():
    blocks = [{"input_ids": torch.tensor([i, i])} for i in range(9)]
    batches = ShardBatches(blocks, [range(0, 5), range(5, 9)], 2)

    def read():
        return [batch["input_ids"][:, 1].tolist() for batch in batches]

    own = [[0, 1], [2, 3], [4], [5, 6], [7, 8]]
    assert len(batches) == 5
    assert read() == own
    batches.pad(4)
    assert read() == own
    batches.pad(7)
    assert len(batches) == 7
    assert read() == [*own, [0], [0]]


def test_every_block_comes_with_its_own_labels(labelled):
    assert len(labelled) == 30
    for i in (29, 0, 8, 7, 15, 16):
        assert torch.equal(labelled[i]["stored"]["place"], 32 * i + torch.arange(32))
        assert torch.equal(labelled[i]["input_ids"], labelled.examples[i]["input_ids"])


def test_another_process_opens_its_own_files(labelled):
    unopened = len(pickle.dumps(labelled))
    labelled[3]
    assert len(pickle.dumps(labelled)) == unopened
    copy = pickle.loads(pickle.dumps(labelled))
    assert torch.equal(copy[3]["stored"]["place"], labelled[3]["stored"]["place"])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_labels_of_other_tokens_are_refused(labelled, make_data, split):
    other = CachedExamples(make_data().examples(split), 18, labelled.folder)
    with pytest.raises(ConfigError, match=r"shard-00001\.safetensors holds predictions for"):
        other[9]


def test_labels_of_other_positions_are_refused(labelled, make_data):
    other = CachedExamples(make_data(isolate_documents=True).examples("train"), 30, labelled.folder)
    with pytest.raises(ConfigError, match="shard-00000"):
        [other[i] for i in range(8)]
