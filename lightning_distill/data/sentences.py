"""Pairs of sentences as tokens, each padded to one length."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_distill.constants import IGNORED


@dataclass(frozen=True)
class Sentences(Dataset[dict[str, Tensor]]):
    """Pairs as tokens, each filled up to the same length, so that what is stored of them has one.

    sources, targets: the tokens of all pairs, one behind the other, and where each begins: [N + 1].
    """

    sources: tuple[Tensor, Tensor]
    targets: tuple[Tensor, Tensor]
    sequence_length: int
    padding: int

    @property
    def positions(self) -> int:
        return self.sequence_length

    def __len__(self) -> int:
        return len(self.targets[1]) - 1

    def source(self, index: int) -> Tensor:
        return _part(self.sources, index)

    def target(self, index: int) -> Tensor:
        return _part(self.targets, index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and attention_mask [S], labels [T], and the pair's number.

        The decoder reads the labels, shifted; its model knows behind which token.
        """
        source, target = self.source(index), self.target(index)
        input_ids = torch.full((self.sequence_length,), self.padding)
        input_ids[: len(source)] = source
        labels = torch.full_like(input_ids, IGNORED)
        labels[: len(target)] = target
        mask = (torch.arange(self.sequence_length) < len(source)).long()
        block = torch.tensor(index)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "block": block}


def joined(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """All rows one behind the other, and where each begins, with the end of the last: [N + 1]."""
    begin = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.tensor([i for row in rows for i in row], dtype=torch.int32), begin


def _part(rows: tuple[Tensor, Tensor], index: int) -> Tensor:
    ids, begin = rows
    return ids[int(begin[index]) : int(begin[index + 1])].long()
