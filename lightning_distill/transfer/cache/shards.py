"""Blocks and what the teacher said of them, in files that are read without being loaded.

A shard holds some blocks that follow each other: fields [blocks, T, ...], and for each block a
checksum of its tokens, so that it can never be taken for another block's. It is written whole or
not at all, and the same bytes whoever writes it, so a run that was killed goes on with the next.
"""

import hashlib
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_distill.data.tasks.base import Examples
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import write_atomic

SHARDS = 64  # for a transfer set of some size
SHARD_TOKENS = 2**13, 2**20  # at least and at most

CHECKSUM = "checksum"


def ranges(num_blocks: int, positions: int) -> list[range]:
    """Which blocks each shard holds."""
    least, most = SHARD_TOKENS
    tokens = min(max(num_blocks * positions // SHARDS, least), most)
    size = max(1, tokens // positions)
    return [range(i, min(i + size, num_blocks)) for i in range(0, num_blocks, size)]


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(file: Path, batches: list[dict[str, Tensor]]) -> None:
    """batches: fields [B, T, ...] of blocks in their order."""
    fields = {name: torch.cat([b[name].cpu() for b in batches]) for name in batches[0]}
    write_atomic(file, save({name: x.contiguous() for name, x in fields.items()}))


class Batches:
    """The blocks of some shards, `size` at a time; none of them reaches into the next shard."""

    def __init__(self, blocks: Examples, shards: list[range], size: int) -> None:
        self.blocks = blocks
        self.parts = [part for shard in shards for part in _parts(shard, size)]

    def __len__(self) -> int:
        return len(self.parts)

    def fill(self, count: int) -> None:
        """Has the first blocks come again until there are so many batches."""
        self.parts += [range(1)] * (count - len(self.parts))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for part in self.parts:
            yield default_collate([self.blocks[i] for i in part])


def _parts(shard: range, size: int) -> Iterator[range]:
    for start in range(0, len(shard), size):
        yield shard[start : start + size]


def checksum(block: dict[str, Tensor]) -> Tensor:
    """8 bytes that change with what is read of an example, and with its labels."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(set(block) - {"block"}):
        x = block[name] if block[name].is_floating_point() else block[name].int()
        digest.update(x.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


class Labelled(Dataset[dict[str, Any]]):
    """The first blocks of a split, each with the fields that a folder of shards keeps of it."""

    def __init__(self, blocks: Examples, num_blocks: int, folder: Path) -> None:
        self.blocks, self.num_blocks, self.folder = blocks, num_blocks, folder
        self.starts = [shard.start for shard in ranges(num_blocks, blocks.positions)]
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The block's own tensors, and `stored`: fields [T, ...] by name.

        Raises ConfigError where the shard's block is another one.
        """
        block = self.blocks[index]
        number = bisect(self.starts, index) - 1
        if number not in self._open:
            with safe_open(shard_file(self.folder, number), "pt") as shard:  # tensors stay mapped
                self._open[number] = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        row = index - self.starts[number]
        stored = {name: x[row] for name, x in self._open[number].items()}
        if not torch.equal(stored.pop(CHECKSUM), checksum(block)):
            raise ConfigError(
                f"{shard_file(self.folder, number)} holds the predictions for other tokens than "
                f"those of block {index} of this run. Its text, tokenizer or packing is another; "
                "leave transfer.cache out to have the teacher label this run's."
            )
        return {**block, "stored": stored}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay behind in their process
