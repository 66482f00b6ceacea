"""The tokens of the conversations of each split, on disk and in memory."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_distill.data.packing import run_starts
from lightning_distill.data.splits import SPLITS, SplitItems


class Stream(NamedTuple):
    """The conversations of a split, one after another: tokens, the index of each one's
    conversation, and whether the assistant says it (bool), each [S]."""

    tokens: Tensor
    documents: Tensor
    targets: Tensor


class Tokenized(NamedTuple):
    """A conversation. targets: whether the assistant says the token. num_bytes: of what it says."""

    ids: list[int]
    targets: list[bool]
    num_bytes: int


def write_chat_tokens(splits: Mapping[str, SplitItems[Tokenized]], folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for split, (items, _) in splits.items():
        counts = torch.tensor([len(one.ids) for one in items])
        numbers = torch.arange(len(items), dtype=torch.int32)
        tensors |= {
            split: torch.tensor([i for one in items for i in one.ids], dtype=torch.int32),
            f"{split}_documents": numbers.repeat_interleave(counts),
            f"{split}_targets": torch.tensor([t for one in items for t in one.targets]),
        }
        sizes[split] = sum(one.num_bytes for one in items)
    save_file(tensors, folder / "tokens.safetensors")
    (folder / "bytes.json").write_text(json.dumps(sizes))


class ChatTokens:
    """What `write_chat_tokens` wrote into a folder."""

    def __init__(self, folder: Path) -> None:
        tensors = load_file(folder / "tokens.safetensors")
        self.num_bytes: dict[str, int] = json.loads((folder / "bytes.json").read_text())
        self.streams = {
            split: Stream(*(tensors[split + part] for part in ("", "_documents", "_targets")))
            for split in SPLITS
        }

    def bytes_per_token(self, split: str) -> float:
        """Of what the assistant says."""
        return float(self.num_bytes[split] / self.streams[split].targets.sum())

    def conversations(self, split: str, length: int) -> tuple[Tensor, Tensor]:
        """The length of each conversation, and whether an answer begins in its first `length`
        tokens: [D]."""
        _, documents, targets = self.streams[split]
        lengths = documents.unique_consecutive(return_counts=True)[1]
        begins = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        places = torch.arange(len(targets)) - begins
        learned = targets & (places > 0) & (places < length)
        return lengths, torch.zeros(len(lengths)).index_add_(0, documents, learned.float()) > 0

    def closing_tokens(self) -> list[int]:
        """Those that close a turn of the assistant, the most frequent first."""
        closing: Counter[int] = Counter()
        for tokens, _, targets in self.streams.values():
            ends_turn = targets & ~torch.cat([targets[1:], torch.tensor([False])])
            closing.update(tokens[ends_turn].tolist())
        return [id for id, _ in closing.most_common()]

    def test_turns(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """The assistant's turns of the test split whose prompt is shorter than `length`: the
        conversation up to the turn, and the turn with the token that closes it."""
        turns = []
        tokens, documents, targets = self.streams["test"]
        counts = documents.unique_consecutive(return_counts=True)[1].tolist()
        conversations = zip(tokens.long().split(counts), targets.split(counts), strict=True)
        for ids, is_target in conversations:
            for start in (run_starts(is_target[1:]) + 1).tolist():
                rest = is_target[start:].tolist()
                stop = start + (rest.index(False) if False in rest else len(rest))
                if start < length:
                    turns.append((ids[:start], ids[start:stop]))
        return turns
