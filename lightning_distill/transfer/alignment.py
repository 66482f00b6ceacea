"""A student's text in the tokens of a teacher with another tokenizer.

Next-token distributions can be compared where both models have read exactly the same text: where
a token of one and a token of the other end at the same character.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.tokenizer import bos_of

CACHE_SIZE = 4096  # blocks; each comes again in every epoch
INCOMPLETE = "\ufffd"  # what decoders return for a part of a character


@dataclass(frozen=True)
class Alignment:
    """A block in the teacher's tokens.

    pairs: (i, j) where ids[: i + 1] of the student and ids[: j + 1] of the teacher are the same
    text.
    """

    ids: list[int]
    position_ids: list[int]
    pairs: list[tuple[int, int]]


class Aligner:
    """Aligns batches of blocks, with a cache of the blocks that were aligned last.

    limit: maximum tokens that the teacher can read, the rest is cut off; None for no limit.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        limit: int | None = None,
    ) -> None:
        self.student, self.teacher, self.limit = student, teacher, limit
        self.bos = bos_of(student), bos_of(teacher)
        self._cache: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The student's batch, input_ids and position_ids [B, T], in the teacher's tokens.

        Those are [B, T'], padded at the end, which does not affect causal models. Also the
        teacher's position for each of the student's: [B, T], -1 where there is none.
        """
        device = batch["input_ids"].device
        blocks = torch.stack([batch["input_ids"], batch["position_ids"]], 1)  # [B, 2, T]
        aligned = [self._align(block) for block in blocks.int().cpu()]
        width = max(1, *(tokens.shape[1] for tokens, _ in aligned))
        input_ids = torch.full((len(aligned), width), int(self.teacher.eos_token_id))
        position_ids = torch.arange(width).repeat(len(aligned), 1)
        for b, (tokens, _) in enumerate(aligned):
            input_ids[b, : tokens.shape[1]], position_ids[b, : tokens.shape[1]] = tokens
        where = torch.stack([where for _, where in aligned]).long().to(device)
        return {"input_ids": input_ids.to(device), "position_ids": position_ids.to(device)}, where

    def _align(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """The student's ids and positions [2, T] to the teacher's [2, T'], and `where` [T]."""
        key = block.numpy().tobytes()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        ids, position_ids = block.tolist()
        alignment = align(ids, position_ids, self.student, self.teacher, self.bos)
        tokens = torch.tensor([alignment.ids, alignment.position_ids], dtype=torch.int)
        tokens = tokens[:, : self.limit]
        where = torch.full((len(ids),), -1, dtype=torch.int)
        if alignment.pairs:
            i, j = torch.tensor(alignment.pairs, dtype=torch.int).unbind(1)
            kept = j < tokens.shape[1]
            where[i[kept].long()] = j[kept]
        # Tensors, as the lists of an Alignment take ten times the memory.
        self._cache[key] = tokens.clone(), where
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return self._cache[key]


def align(
    ids: list[int],
    position_ids: list[int],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    bos: tuple[list[int], list[int]] = ([], []),
) -> Alignment:
    """ids: a block of the student's tokens; an end-of-text token ends each document in it.
    bos: the beginning-of-text tokens of student and teacher, which are no text; each model reads
    its own.

    Documents are tokenized one by one. Where position_ids restart within the block, documents are
    isolated, and the teacher's positions restart too.
    """
    isolated = 0 in position_ids[1:]
    aligned = Alignment([], [], [])
    start = 0
    student_bos, teacher_bos = bos
    while start < len(ids):
        ended = student.eos_token_id in ids[start:]
        stop = ids.index(student.eos_token_id, start) if ended else len(ids)
        document = ids[start:stop]
        begin = len(student_bos) if student_bos and document[:1] == student_bos else 0
        text_ids, pairs = _align_document(document[begin:], student, teacher, first=start == 0)
        teacher_ids, offset = [*teacher_bos, *text_ids], len(aligned.ids)
        shift = len(teacher_bos)
        aligned.pairs.extend([(start, offset)] * bool(begin and shift))
        aligned.pairs.extend((start + begin + i, offset + shift + j) for i, j in pairs)
        if ended:
            aligned.pairs.append((stop, offset + len(teacher_ids)))
            teacher_ids = [*teacher_ids, teacher.eos_token_id]
        position = 0 if isolated else offset
        aligned.position_ids.extend(range(position, position + len(teacher_ids)))
        aligned.ids.extend(teacher_ids)
        start = stop + 1
    return aligned


def _align_document(
    ids: list[int],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    first: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """A document's ids in the teacher's tokens, and the pairs within it.

    first: in its block, which may begin within a character; the teacher reads from the next one.
    """
    text, ends = read(ids, student)
    skipped = len(text) - len(text.lstrip(INCOMPLETE)) if first else 0
    teacher_ids = teacher(text[skipped:], add_special_tokens=False, verbose=False)["input_ids"]
    teacher_text, teacher_ends = read(teacher_ids, teacher)
    # Decoders that mark the beginnings of words drop the first space, which the teacher has read.
    if text[skipped:].startswith(" ") and not teacher_text.startswith(" "):
        skipped += 1
    same = _common_prefix(text[skipped:], teacher_text)
    teacher_index = {
        end: j for j, end in enumerate(teacher_ends) if end is not None and end <= same
    }
    pairs = [
        (i, teacher_index[end - skipped])
        for i, end in enumerate(ends)
        if end is not None and end - skipped in teacher_index
    ]
    return teacher_ids, pairs


def read(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int | None]]:
    """The text of some tokens, and its length in characters after each of them.

    None after a token that ends within a character. Each piece of text is decoded together with
    the piece before it, because decoders strip a space from the beginning of their input.
    """
    text, ends = "", list[int | None]()
    context = done = 0  # the last complete piece is ids[context:done]
    known = ""  # its text
    for k in range(1, len(ids) + 1):
        window = _decode(ids[context:k], tokenizer)
        if window.endswith(INCOMPLETE) or not window.startswith(known):
            ends.append(None)
            continue
        text += window[len(known) :]
        ends.append(len(text))
        context, done = done, k
        known = _decode(ids[context:done], tokenizer)
    return text, ends


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.is_fast:  # skips the checks that take most of the time of `decode`
        return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _common_prefix(a: str, b: str) -> int:
    """The number of leading characters that two texts share."""
    if a == b:
        return len(a)
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
