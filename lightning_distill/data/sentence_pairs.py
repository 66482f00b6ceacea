"""Pairs of sentences as tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.sources.base import Pair


@dataclass(frozen=True)
class SentencePairs(Dataset[dict[str, Tensor]]):
    """Pairs padded to one length, so that the predictions stored for them have one shape.

    sources, targets: the tokens of all pairs, concatenated, and where each begins, [N + 1].
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
        return _row(self.sources, index)

    def target(self, index: int) -> Tensor:
        return _row(self.targets, index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and attention_mask [S], labels [T], and the pair's index.

        The decoder's inputs are the labels, shifted by the model.
        """
        source, target = self.source(index), self.target(index)
        input_ids = torch.full((self.sequence_length,), self.padding)
        input_ids[: len(source)] = source
        labels = torch.full_like(input_ids, IGNORED)
        labels[: len(target)] = target
        mask = (torch.arange(self.sequence_length) < len(source)).long()
        block = torch.tensor(index)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "block": block}


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]
) -> list[tuple[list[int], list[int]]]:
    """Each pair's source and target, closed by the end-of-text token."""
    tokenize: Any = tokenizer
    eos = int(tokenize.eos_token_id)
    sources = tokenize([pair.source for pair in pairs], verbose=False)["input_ids"]
    targets = tokenize(text_target=[pair.target for pair in pairs], verbose=False)["input_ids"]

    def closed(ids: list[int]) -> list[int]:
        return ids if eos in ids else [*ids, eos]

    def ended(ids: list[int]) -> list[int]:  # mBART's tokenizer adds the language behind it
        return ids[: ids.index(eos) + 1]

    return [(closed(s), ended(closed(t))) for s, t in zip(sources, targets, strict=True)]


def concatenate(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """All rows as one tensor [S], and where each begins, closed by S: [N + 1]."""
    begin = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.tensor([i for row in rows for i in row], dtype=torch.int32), begin


def _row(rows: tuple[Tensor, Tensor], index: int) -> Tensor:
    ids, begin = rows
    return ids[int(begin[index]) : int(begin[index + 1])].long()
