"""Documents into one stream of tokens, and the stream into blocks of equal length."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError

OPEN = 64  # blocks that whole documents are still put into
LOOKED_AT = 512  # blocks of a split, to tell what its labels are


@dataclass(frozen=True)
class Blocks(Dataset[dict[str, Tensor]]):
    """A split, cut into blocks of T tokens and the T that follow each of them.

    tokens: [S] all documents of the split, each closed by the end-of-text token.
    documents: [S] the number of the document that a token belongs to.
    targets: [S] which tokens are there to be predicted; None for all.
    A block's label at t is the token after its input at t, also over the block's end, so that
    every token of the split but the first is predicted once.
    """

    tokens: Tensor
    documents: Tensor
    sequence_length: int
    isolate_documents: bool
    targets: Tensor | None = None

    @property
    def positions(self) -> int:
        return self.sequence_length

    def __len__(self) -> int:
        # The last block may be short; it is filled up with labels that carry no loss.
        return -(-(len(self.tokens) - 1) // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids, labels and position_ids of one block, each [T], and its number."""
        T = self.sequence_length
        start = index * T
        stop = min(start + T, len(self.tokens) - 1)
        filler = torch.zeros(T - (stop - start), dtype=torch.long)
        input_ids = self.tokens[start:stop].long()
        labels = self.tokens[start + 1 : stop + 1].long()
        if self.targets is not None:
            labels = labels.masked_fill(~self.targets[start + 1 : stop + 1], IGNORED)
        position_ids = torch.arange(T)
        if self.isolate_documents:
            # A first token is not predicted from another document, and each document's
            # positions start at 0, which is how transformers' attention knows them apart.
            documents = self.documents[start : stop + 1]
            labels = labels.masked_fill(documents[1:] != documents[:-1], IGNORED)
            position_ids[: stop - start] -= _starts(documents[:-1])
        return {
            "input_ids": torch.cat([input_ids, filler]),
            "labels": torch.cat([labels, filler + IGNORED]),
            "position_ids": position_ids,
            "block": torch.tensor(index),
        }


def _starts(documents: Tensor) -> Tensor:
    """For each position the index at which its document begins: [T] to [T]."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[1:] = documents[1:] != documents[:-1]
    index = torch.arange(len(documents))
    return torch.where(begins, index, 0).cummax(0).values


def whole_documents(
    tokens: Tensor, documents: Tensor, targets: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rearranged so that no document goes over the end of a block: [S] each to [S'] each.

    Each document goes to the first of the open blocks that has room for it, and what stays free is
    filled up with tokens of no document (-1) that carry no loss. A longer document loses its end;
    one without targets is left out.
    """
    counts = documents.unique_consecutive(return_counts=True)[1].tolist()
    blocks: list[list[Tensor]] = []
    rooms: list[int] = []
    start = 0
    for count in counts:
        index = torch.arange(start, start + min(count, length))
        start += count
        if not targets[index[1:]].any():  # the first token is never predicted
            continue
        first = max(0, len(rooms) - OPEN)
        place = next((b for b in range(first, len(rooms)) if rooms[b] >= len(index)), len(rooms))
        if place == len(rooms):
            blocks.append([])
            rooms.append(length)
        blocks[place].append(index)
        rooms[place] -= len(index)
    filled = [
        torch.cat([*parts, torch.full((room,), -1)])
        for parts, room in zip(blocks, rooms, strict=True)
    ]
    order = torch.cat(filled) if filled else torch.zeros(0, dtype=torch.long)
    free = order < 0
    return (
        tokens[order].masked_fill(free, 0),
        documents[order].masked_fill(free, -1),
        targets[order].masked_fill(free, False),
    )


def check_targets(splits: dict[str, Blocks]) -> str:
    """Which share of each split is there to be predicted.

    Raises ConfigError where labels are not the tokens that come next, or a split has none.
    """
    said = []
    for split, blocks in splits.items():
        kept = wrong = total = 0
        for index in range(min(len(blocks), LOOKED_AT)):
            block = blocks[index]
            labels, following = block["labels"], block["input_ids"][1:]
            known = labels != IGNORED
            last = min(len(blocks.tokens) - 2 - index * len(labels), len(following))  # then filler
            wrong += int((labels[:last] != following[:last])[known[:last]].sum())
            kept, total = kept + int(known.sum()), total + len(labels)
        if wrong:
            raise ConfigError(
                f"data: {wrong:,} labels of the {split} split are not the tokens that come next."
            )
        if not kept:
            raise ConfigError(
                f"data: no token of the {split} split is there to be predicted. Set "
                "data.isolate_documents=false, or bring longer documents."
            )
        said.append(f"{kept / total:.1%} of {split}")
    return f"the next tokens, {', '.join(said)}"
