"""Texts with labels as tokens."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class LabelledTexts(Dataset[dict[str, Tensor]]):
    """A split: each text padded or truncated to T tokens.

    tokens: [S] of all texts, concatenated. ends: [N] where each text ends. labels: [N].
    around: the special tokens before and after each text.
    """

    positions = 1

    def __init__(
        self,
        tokens: Tensor,
        ends: Tensor,
        labels: Tensor,
        sequence_length: int,
        around: tuple[list[int], list[int]],
        padding: int,
    ) -> None:
        self.tokens, self.ends, self.labels = tokens, ends, labels
        self.sequence_length, self.around, self.padding = sequence_length, around, padding

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and attention_mask [T], the label, and the text's index."""
        before, after = self.around
        start = int(self.ends[index - 1]) if index else 0
        room = self.sequence_length - len(before) - len(after)
        text = self.tokens[start : min(int(self.ends[index]), start + room)].tolist()
        ids = [*before, *text, *after]
        padding = self.sequence_length - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self.padding] * padding),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
            "labels": self.labels[index],
            "block": torch.tensor(index),
        }
