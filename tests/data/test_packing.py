import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_distill.constants import IGNORED
from lightning_distill.data.packing import Blocks, whole_documents
from lightning_distill.models import sizes


def make(lengths, sequence_length, isolate):
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).int()
    return Blocks(torch.arange(len(documents)).int(), documents, sequence_length, isolate)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(2, 7))
@settings(max_examples=60, deadline=None)
def test_every_token_but_the_first_is_predicted_once_from_the_one_before(lengths, length):
    blocks = make(lengths, length, isolate=False)
    pairs = []
    for block in (blocks[i] for i in range(len(blocks))):
        kept = block["labels"] != IGNORED
        pairs += zip(block["input_ids"][kept].tolist(), block["labels"][kept].tolist(), strict=True)
    assert pairs == [(i, i + 1) for i in range(sum(lengths) - 1)]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(2, 7))
@settings(max_examples=60, deadline=None)
def test_isolated_documents_never_predict_each_other_and_count_from_zero(lengths, length):
    blocks = make(lengths, length, isolate=True)
    documents = blocks.documents.tolist()
    predicted = []
    for number in range(len(blocks)):
        block = blocks[number]
        position = 0
        for t in range(length):
            token, label = int(block["input_ids"][t]), int(block["labels"][t])
            if number * length + t >= len(documents) - 1:
                assert label == IGNORED
                continue
            same = t > 0 and documents[token] == documents[token - 1]
            position = position + 1 if same else 0
            assert int(block["position_ids"][t]) == position
            if label != IGNORED:
                predicted.append(label)
                assert documents[label] == documents[token]
    first = {sum(lengths[:i]) for i in range(len(lengths))}
    assert predicted == [i for i in range(sum(lengths)) if i not in first]


@pytest.mark.parametrize("family", ["size", "llama"])
def test_attention_stays_within_an_isolated_document(make_data, family):
    data = make_data(isolate_documents=True)
    blocks = data.examples("train")
    block = next(b for b in (blocks[i] for i in range(99)) if (b["position_ids"] == 0).sum() == 2)
    begin = int(block["position_ids"].tolist().index(0, 1))
    if family == "size":
        model = sizes.decoder(sizes.Size(16, 2, 2, 64), data.tokenizer).eval()
    else:
        config = LlamaConfig(
            vocab_size=len(data.tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
        model = LlamaForCausalLM(config).eval()

    def logits(ids):
        inputs = {"input_ids": ids[None], "position_ids": block["position_ids"][None]}
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0]

    changed = block["input_ids"].clone()
    changed[:begin] = (changed[:begin] + 1) % 300
    before, after = logits(block["input_ids"]), logits(changed)
    torch.testing.assert_close(before[begin:], after[begin:], rtol=0, atol=1e-6)
    assert (before[:begin] - after[:begin]).abs().max() > 1e-3
    # The same tokens alone give the same logits: nothing of the neighbour is left.
    with torch.no_grad():
        alone = model(input_ids=block["input_ids"][None, begin:], use_cache=False).logits[0]
    torch.testing.assert_close(before[begin:], alone, rtol=1e-4, atol=1e-5)


documents = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2**9)), min_size=1, max_size=12)


@given(documents, st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_whole_documents_are_in_one_block_each_once_and_in_their_order(given_documents, length):
    counts = [count for count, _ in given_documents]
    numbers = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
    bits = [[bool(mask >> t & 1) for t in range(count)] for count, mask in given_documents]
    targets = torch.tensor([bit for document in bits for bit in document])
    tokens = torch.arange(len(numbers)) + 1  # each its own, and none the filler's
    packed, where, kept = whole_documents(tokens, numbers, targets, length)
    assert len(packed) % length == 0
    learned = {i for i, document in enumerate(bits) if any(document[1:length])}
    assert set(where.tolist()) - {-1} == learned
    for i in learned:
        start = sum(counts[:i])
        places = (where == i).nonzero()[:, 0]
        expected = list(range(start + 1, start + 1 + min(counts[i], length)))
        assert packed[places].tolist() == expected
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + len(expected)))
        assert int(places[0]) // length == int(places[-1]) // length
        assert kept[places].tolist() == targets[start : start + len(expected)].tolist()
    assert not kept[where == -1].any()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(2, 7), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_only_targets_are_predicted_and_the_inputs_stay_as_they_are(lengths, length, seed):
    plain = make(lengths, length, isolate=True)
    targets = torch.rand(len(plain.tokens), generator=torch.Generator().manual_seed(seed)) < 0.5
    some = dataclasses.replace(plain, targets=targets)
    assert len(some) == len(plain)
    for one, other in zip(map(some.__getitem__, range(len(some))), plain, strict=False):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["position_ids"], other["position_ids"])
        wanted = (other["labels"] != IGNORED) & targets[other["labels"].clamp(min=0)]
        assert torch.equal(one["labels"], other["labels"].where(wanted, IGNORED))


def test_a_document_attends_to_nothing_outside_of_itself_wherever_it_lies():
    torch.manual_seed(0)
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=32, num_attention_heads=2, num_key_value_heads=2, **width)
    model = LlamaForCausalLM(config).eval()

    @given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 999))
    @settings(max_examples=25, deadline=None)
    def check(lengths, seed):
        total = sum(lengths)
        block = make(lengths, total, isolate=True)[0]
        dice = torch.Generator().manual_seed(seed)
        ids = torch.randint(32, (total,), generator=dice)
        positions = block["position_ids"]
        with torch.no_grad():
            whole = model(ids[None], position_ids=positions[None], use_cache=False).logits[0]
            start = 0
            for count in lengths:
                part = slice(start, min(start + count, total - 1))  # the last one has no label
                start += count
                if part.stop > part.start:
                    alone = model(ids[None, part], use_cache=False).logits[0]
                    torch.testing.assert_close(whole[part], alone, rtol=1e-4, atol=1e-5)

    check()
