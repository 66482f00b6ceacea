"""For a teacher with a tokenizer of its own: the student's text in the teacher's tokens.

Next-token distributions can be compared where both models have read exactly the same text, which
is where a token of the one and a token of the other end at the same character.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

REMEMBERED = 4096  # blocks; each comes again in every epoch
INCOMPLETE = "\ufffd"  # what decoders make of a part of a character


@dataclass(frozen=True)
class Alignment:
    """A block as the teacher reads it.

    pairs: (i, j) so that ids[: i + 1] of the student and ids[: j + 1] of the teacher are the same
    text.
    """

    ids: list[int]
    position_ids: list[int]
    pairs: list[tuple[int, int]]


class Aligner:
    """Aligns batches of blocks; a block that was seen lately is not aligned again.

    limit: the most tokens that the teacher can read; None for no end. What follows is left out.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        limit: int | None = None,
    ) -> None:
        self.student, self.teacher, self.limit = student, teacher, limit
        self._seen: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The teacher's batch for the student's: input_ids and position_ids, [B, T].

        The teacher's are [B, T'], filled up at the end, which the models, being causal, do not
        notice. Also the teacher's time for each of the student's: [B, T], -1 where there is none.
        """
        device = batch["input_ids"].device
        blocks = torch.stack([batch["input_ids"], batch["position_ids"]], 1)  # [B, 2, T]
        found = [self._align(block) for block in blocks.int().cpu()]
        width = max(1, *(theirs.shape[1] for theirs, _ in found))
        input_ids = torch.full((len(found), width), int(self.teacher.eos_token_id))
        position_ids = torch.arange(width).repeat(len(found), 1)
        for b, (theirs, _) in enumerate(found):
            input_ids[b, : theirs.shape[1]], position_ids[b, : theirs.shape[1]] = theirs
        where = torch.stack([where for _, where in found]).long().to(device)
        return {"input_ids": input_ids.to(device), "position_ids": position_ids.to(device)}, where

    def _align(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """[2, T] ids and positions of the student to [2, T'] of the teacher, and where: [T]."""
        key = block.numpy().tobytes()
        if key in self._seen:
            self._seen.move_to_end(key)
            return self._seen[key]
        ids, position_ids = block.tolist()
        found = align(ids, position_ids, self.student, self.teacher)
        theirs = torch.tensor([found.ids, found.position_ids], dtype=torch.int)[:, : self.limit]
        where = torch.full((len(ids),), -1, dtype=torch.int)
        if found.pairs:
            i, j = torch.tensor(found.pairs, dtype=torch.int).unbind(1)
            kept = j < theirs.shape[1]
            where[i[kept].long()] = j[kept]
        # Not the Alignment itself, whose lists take ten times the memory.
        self._seen[key] = theirs.clone(), where
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return self._seen[key]


def align(
    ids: list[int],
    position_ids: list[int],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
) -> Alignment:
    """ids: a block of the student's tokens, in which end-of-text tokens close the documents."""
    isolated = 0 in position_ids[1:]
    theirs: list[int] = []
    positions: list[int] = []
    pairs: list[tuple[int, int]] = []
    start = 0
    while start < len(ids):
        closed = student.eos_token_id in ids[start:]
        stop = ids.index(student.eos_token_id, start) if closed else len(ids)
        text, ends = read(ids[start:stop], student)
        # A block may begin within a character; the teacher begins with the first whole one.
        head = len(text) - len(text.lstrip(INCOMPLETE)) if start == 0 else 0
        own = teacher(text[head:], add_special_tokens=False, verbose=False)["input_ids"]
        their_text, their_ends = read(own, teacher)
        # Decoders that mark the beginnings of words drop the first space, which was read.
        if text[head:].startswith(" ") and not their_text.startswith(" "):
            head += 1
        same = _common_prefix(text[head:], their_text)
        times = {end: j for j, end in enumerate(their_ends) if end is not None and end <= same}
        for i, end in enumerate(ends):
            if end is not None and end - head in times:
                pairs.append((start + i, len(theirs) + times[end - head]))
        if closed:
            pairs.append((stop, len(theirs) + len(own)))
            own = [*own, teacher.eos_token_id]
        first = 0 if isolated else len(theirs)
        positions += range(first, first + len(own))
        theirs += own
        start = stop + 1
    return Alignment(theirs, positions, pairs)


def read(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int | None]]:
    """The text of some tokens, and the number of characters read after each of them.

    None after a token that ends within a character. Each piece of text is decoded together with
    the piece before it, because decoders strip a space at the beginning of what they are given.
    """
    text, ends = "", list[int | None]()
    context = done = 0  # the last whole piece is ids[context:done]
    known = ""  # what it decodes to
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
    if tokenizer.is_fast:  # without the checks of `decode`, which take most of its time
        return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _common_prefix(a: str, b: str) -> int:
    """The number of characters at the start that two texts share."""
    if a == b:
        return len(a)
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
