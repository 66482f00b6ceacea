"""Files that hold the teacher's predictions for the examples of a transfer set.

A shard holds consecutive examples: fields [examples, T, ...] by name, and a checksum of each
example, so that predictions cannot be taken for another example's. Files are memory-mapped when
read. Each is written atomically and has the same bytes whichever process writes it, so that an
interrupted run continues with the missing ones.
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

from lightning_distill.data.mixture import parts_of
from lightning_distill.data.tasks.base import Examples
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import write_atomic

SHARDS = 64  # unless that makes them smaller or larger than:
SHARD_TOKENS = 2**13, 2**20

CHECKSUM = "checksum"


def shard_ranges(num_examples: int, positions: int) -> list[range]:
    """The examples of each shard. positions: predictions an example."""
    smallest, largest = SHARD_TOKENS
    tokens = min(max(num_examples * positions // SHARDS, smallest), largest)
    size = max(1, tokens // positions)
    return [range(i, min(i + size, num_examples)) for i in range(0, num_examples, size)]


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(file: Path, batches: list[dict[str, Tensor]]) -> None:
    """batches: fields [B, T, ...] of consecutive examples."""
    fields = {name: torch.cat([b[name].cpu() for b in batches]) for name in batches[0]}
    write_atomic(file, save({name: x.contiguous() for name, x in fields.items()}))


class ShardBatches:
    """Batches of up to `batch_size` examples, each from one shard."""

    def __init__(self, examples: Examples, shards: list[range], batch_size: int) -> None:
        self.examples = examples
        self.batches = [
            shard[start : start + batch_size]
            for shard in shards
            for start in range(0, len(shard), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def pad(self, count: int) -> None:
        """Appends the first example until there are `count` batches."""
        self.batches += [range(1)] * (count - len(self.batches))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for numbers in self.batches:
            yield default_collate([self.examples[i] for i in numbers])


def checksum(example: dict[str, Tensor]) -> Tensor:
    """8 bytes, [8], that depend on an example's inputs and labels, and not on its number."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(set(example) - {"block"}):
        x = example[name] if example[name].is_floating_point() else example[name].int()
        digest.update(x.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


class CachedExamples(Dataset[dict[str, Any]]):
    """The first examples of a split, each with the fields that a folder of shards has for it."""

    def __init__(self, examples: Examples, num_examples: int, folder: Path) -> None:
        self.examples, self.num_examples, self.folder = examples, num_examples, folder
        parts = parts_of(examples)
        self.parts = None if parts is None else parts[:num_examples]
        self.starts = [shard.start for shard in shard_ranges(num_examples, examples.positions)]
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example's own tensors, and `stored`: fields [T, ...] by name.

        Raises ConfigError where the shard was written for another example.
        """
        example = self.examples[index]
        number = bisect(self.starts, index) - 1
        row = index - self.starts[number]
        stored = {name: x[row] for name, x in self._shard(number).items()}
        if not torch.equal(stored.pop(CHECKSUM), checksum(example)):
            raise ConfigError(
                f"{shard_file(self.folder, number)} holds predictions for other tokens than those "
                f"of block {index} of this run: text, tokenizer or packing differ. Leave "
                "transfer.cache out to have a cache made for this run."
            )
        return {**example, "stored": stored}

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            with safe_open(shard_file(self.folder, number), "pt") as shard:  # tensors stay mapped
                self._open[number] = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        tensors: dict[str, Tensor] = self._open[number]
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process opens the files for itself
