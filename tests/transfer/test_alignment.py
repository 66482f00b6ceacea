"""Two tokenizers over the same text: where both have read the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.transfer.alignment import Aligner, align, read

PROSE = ["the student reads what the teacher reads, naïve or not: 😀 and 👩‍👩‍👧 too"] * 3
OTHER = ["temperature softens the distribution of a large model's next token"] * 3
COARSE, FINE = train_tokenizer(PROSE + OTHER, 420), train_tokenizer(OTHER, 290)


def unigram():
    """As of Llama 2 or T5: words begin with ▁, and the decoder drops the first space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PROSE + OTHER, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


SENTENCEPIECE = unigram()
TEXTS = st.lists(
    st.sampled_from([*"abeht ,\n😀é👩‍👧", " the", " teacher", " softens", "naïve"]), max_size=30
).map("".join)


def ids_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(TEXTS, st.sampled_from([(COARSE, FINE), (FINE, COARSE), (COARSE, COARSE)]))
@settings(max_examples=60, deadline=None)
def test_pairs_are_all_times_at_which_both_have_read_the_same(text, tokenizers):
    student, teacher = tokenizers
    ids = ids_of(text, student)
    found = align(ids, list(range(len(ids))), student, teacher)
    assert found.ids == ids_of(text, teacher)
    prefixes = [teacher.decode(found.ids[: j + 1]) for j in range(len(found.ids))]
    expected = [
        (i, prefixes.index(read))
        for i in range(len(ids))
        if (read := student.decode(ids[: i + 1])) in prefixes and not read.endswith("\ufffd")
    ]
    assert found.pairs == expected


@given(TEXTS)
@settings(max_examples=30, deadline=None)
def test_a_tokenizer_that_marks_words_is_aligned_too(text):
    ids = ids_of(text.strip(), COARSE)
    found = align(ids, list(range(len(ids))), COARSE, SENTENCEPIECE)
    for i, j in found.pairs:
        assert COARSE.decode(ids[: i + 1]) == SENTENCEPIECE.decode(found.ids[: j + 1])


def test_most_of_a_text_is_aligned_with_a_tokenizer_that_marks_words():
    ids = ids_of("the teacher reads a large model's next token", COARSE)
    found = align(ids, list(range(len(ids))), COARSE, SENTENCEPIECE)
    assert len(found.pairs) > 0.6 * len(ids)


def test_a_block_that_begins_with_a_space_is_aligned_with_a_tokenizer_that_marks_words():
    ids = ids_of(" the teacher", COARSE)
    found = align(ids, list(range(len(ids))), COARSE, SENTENCEPIECE)
    assert (len(ids) - 1, len(found.ids) - 1) in found.pairs
    for i, j in found.pairs:
        read_by_both = SENTENCEPIECE.decode(found.ids[: j + 1])
        assert COARSE.decode(ids[: i + 1]) == " " + read_by_both


def test_the_same_tokenizer_aligns_every_time_with_itself():
    ids = [*ids_of("the student", COARSE), COARSE.eos_token_id, *ids_of("reads", COARSE)]
    found = align(ids, list(range(len(ids))), COARSE, COARSE)
    assert found.ids == ids
    assert found.pairs == [(i, i) for i in range(len(ids))]


@given(TEXTS)
@settings(max_examples=30, deadline=None)
def test_text_is_read_token_by_token(text):
    for tokenizer in (COARSE, FINE):
        ids = ids_of(text, tokenizer)
        found, ends = read(ids, tokenizer)
        assert found == text
        for k, end in enumerate(ends):
            whole = tokenizer.decode(ids[: k + 1])
            assert end is None if whole.endswith("\ufffd") else whole == text[:end]


def test_documents_end_together():
    first, second = ids_of("the teacher", COARSE), ids_of("softens", COARSE)
    eos = COARSE.eos_token_id
    ids = [*first, eos, *second, eos]
    found = align(ids, list(range(len(ids))), COARSE, FINE)
    ends = [j for j, token in enumerate(found.ids) if token == FINE.eos_token_id]
    assert (len(first), ends[0]) in found.pairs
    assert (len(ids) - 1, ends[1]) in found.pairs
    assert found.position_ids == list(range(len(found.ids)))


def test_isolated_documents_are_isolated_for_the_teacher():
    first, second = ids_of("the teacher", COARSE), ids_of("softens", COARSE)
    ids = [*first, COARSE.eos_token_id, *second]
    positions = [*range(len(first) + 1), *range(len(second))]
    found = align(ids, positions, COARSE, FINE)
    length = len(ids_of("the teacher", FINE)) + 1
    assert found.position_ids == [*range(length), *range(len(found.ids) - length)]


def test_a_block_may_begin_and_end_within_a_character():
    ids = ids_of("😀 the teacher 😀", FINE)
    cut = ids[1:-1]  # the bytes of an emoji are tokens of their own here
    found = align(cut, list(range(len(cut))), FINE, COARSE)
    assert COARSE.decode(found.ids) == " the teacher "
    assert len(found.pairs) > 0
    for i, j in found.pairs:
        assert FINE.decode(cut[: i + 1]).lstrip("\ufffd") == COARSE.decode(found.ids[: j + 1])


@pytest.fixture
def batch():
    ids = ids_of("the student reads what the teacher reads and more", COARSE)
    T = len(ids) // 2
    rows = torch.tensor([ids[:T], ids[T : 2 * T]])
    return {"input_ids": rows, "position_ids": torch.arange(T).expand(2, -1)}


def test_a_batch_is_aligned_row_by_row(batch):
    theirs, where = Aligner(COARSE, FINE)(batch)
    assert where.shape == batch["input_ids"].shape
    assert theirs["input_ids"].shape == theirs["position_ids"].shape
    for b, ids in enumerate(batch["input_ids"].tolist()):
        alone = align(ids, list(range(len(ids))), COARSE, FINE)
        length = len(alone.ids)
        assert theirs["input_ids"][b, :length].tolist() == alone.ids
        assert theirs["input_ids"][b, length:].eq(FINE.eos_token_id).all()
        assert [(i, j) for i, j in enumerate(where[b].tolist()) if j >= 0] == alone.pairs


def test_a_block_that_comes_again_is_aligned_once(batch, monkeypatch):
    aligner = Aligner(COARSE, FINE)
    first = aligner(batch)
    monkeypatch.setattr("lightning_distill.transfer.alignment.align", None)
    again = aligner(batch)
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[0]["input_ids"], again[0]["input_ids"])


def test_what_is_longer_than_the_teacher_can_read_is_left_out(batch):
    theirs, where = Aligner(COARSE, COARSE, limit=3)(batch)
    assert theirs["input_ids"].shape[1] == 3
    assert where.tolist() == [[0, 1, 2, -1, -1]] * 2
