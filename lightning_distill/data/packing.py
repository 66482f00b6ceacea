"""One stream of tokens, cut into blocks of equal length."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError

OPEN_BLOCKS = 64  # blocks that whole documents are still packed into
CHECKED_BLOCKS = 512  # blocks of a split whose labels are checked


@dataclass(frozen=True)
class Blocks(Dataset[dict[str, Tensor]]):
    """A split, cut into blocks of T tokens.

    tokens: [S] all documents of the split, each closed by the end-of-text token.
    documents: [S] the index of each token's document.
    targets: [S] bool, which tokens are predicted; None for all.
    bos: a token that begins each block, in place of its first, and is never predicted.
    A block's label at t is the token after its input at t, also across the block's end, so that
    every token of the split but the first is predicted once.
    """

    tokens: Tensor
    documents: Tensor
    sequence_length: int
    isolate_documents: bool
    targets: Tensor | None = None
    bos: int | None = None

    @property
    def positions(self) -> int:
        return self.sequence_length

    def __len__(self) -> int:
        # The last block may be short; it is padded with labels that carry no loss.
        return -(-(len(self.tokens) - 1) // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids, labels and position_ids of one block, each [T], and its index."""
        T = self.sequence_length
        start = index * T
        stop = min(start + T, len(self.tokens) - 1)
        padding = torch.zeros(T - (stop - start), dtype=torch.long)
        input_ids = self.tokens[start:stop].long()
        labels = self.tokens[start + 1 : stop + 1].long()
        if self.targets is not None:
            labels = labels.masked_fill(~self.targets[start + 1 : stop + 1], IGNORED)
        if self.bos is not None:
            input_ids[0] = self.bos
            labels = labels.masked_fill(labels == self.bos, IGNORED)
        position_ids = torch.arange(T)
        if self.isolate_documents:
            # No token is predicted from another document, and positions restart at 0 with each
            # document, by which transformers' attention separates packed documents.
            documents = self.documents[start : stop + 1]
            labels = labels.masked_fill(documents[1:] != documents[:-1], IGNORED)
            position_ids[: stop - start] -= _document_starts(documents[:-1])
        return {
            "input_ids": torch.cat([input_ids, padding]),
            "labels": torch.cat([labels, padding + IGNORED]),
            "position_ids": position_ids,
            "block": torch.tensor(index),
        }


def _document_starts(documents: Tensor) -> Tensor:
    """For each position the index at which its document begins: [T] to [T]."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[1:] = documents[1:] != documents[:-1]
    index = torch.arange(len(documents))
    return torch.where(begins, index, 0).cummax(0).values


def run_starts(flags: Tensor) -> Tensor:
    """The indices at which runs of True begin: [T] to [R]."""
    before = torch.cat([torch.zeros_like(flags[:1]), flags[:-1]])
    return (flags & ~before).nonzero()[:, 0]


def whole_documents(
    tokens: Tensor, documents: Tensor, targets: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rearranged so that no document crosses the end of a block: [S] each to [S'] each.

    Each document goes to the first open block that has room for it (first fit); the rest of a block
    is padding, of document -1 and without loss. A document longer than a block is truncated; one
    without targets is dropped.
    """
    counts = documents.unique_consecutive(return_counts=True)[1].tolist()
    blocks: list[list[Tensor]] = []
    rooms: list[int] = []
    start = 0
    for count in counts:
        indices = torch.arange(start, start + min(count, length))
        start += count
        if not targets[indices[1:]].any():  # the first token is never predicted
            continue
        first = max(0, len(rooms) - OPEN_BLOCKS)
        block = next((b for b in range(first, len(rooms)) if rooms[b] >= len(indices)), len(rooms))
        if block == len(rooms):
            blocks.append([])
            rooms.append(length)
        blocks[block].append(indices)
        rooms[block] -= len(indices)
    padded = [
        torch.cat([*parts, torch.full((room,), -1)])
        for parts, room in zip(blocks, rooms, strict=True)
    ]
    order = torch.cat(padded) if padded else torch.zeros(0, dtype=torch.long)
    padding = order < 0
    return (
        tokens[order].masked_fill(padding, 0),
        documents[order].masked_fill(padding, -1),
        targets[order].masked_fill(padding, False),
    )


def check_targets(splits: dict[str, Blocks]) -> str:
    """The share of each split's tokens that is predicted, in one line.

    Raises ConfigError where a label is not the next token, or a split has no label.
    """
    shares = []
    for split, blocks in splits.items():
        labelled = wrong = total = 0
        for index in range(min(len(blocks), CHECKED_BLOCKS)):
            block = blocks[index]
            labels, following = block["labels"], block["input_ids"][1:]
            has_label = labels != IGNORED
            # What follows `last` is padding.
            last = min(len(blocks.tokens) - 2 - index * len(labels), len(following))
            wrong += int((labels[:last] != following[:last])[has_label[:last]].sum())
            labelled, total = labelled + int(has_label.sum()), total + len(labels)
        if wrong:
            raise ConfigError(
                f"data: {wrong:,} labels of the {split} split are not the next tokens."
            )
        if not labelled:
            raise ConfigError(
                f"data: no token of the {split} split has a label. Set "
                "data.isolate_documents=false, or bring longer documents."
            )
        shares.append(f"{labelled / total:.1%} of {split}")
    return f"the next tokens, {', '.join(shares)}"
