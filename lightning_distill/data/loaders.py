"""Which examples come when, and to which of several devices; and how long they were waited for."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_distill.constants import IGNORED


class Loader(DataLoader):
    """Tells how long its batches were waited for."""

    waited = 0.0  # seconds

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                raise RuntimeError(
                    f"a process that brings examples (data.num_workers={self.num_workers}) was "
                    "killed, perhaps for want of memory; the same command goes on from the last "
                    "checkpoint"
                ) from error
            self.waited += time.perf_counter() - start
            yield batch


@dataclass(frozen=True)
class Share:
    """Every world-th micro-batch of a run's samples, from the rank-th on: so the examples of a step
    are the same ones on however many devices."""

    rank: int = 0
    world: int = 1
    batch_size: int = 1

    def has(self, sample: int) -> bool:
        return sample // self.batch_size % self.world == self.rank


class Order(Sampler[int]):
    """Indices of examples for a whole training run: each pass over them is shuffled anew.

    One run is one Lightning epoch, so that its progress bar counts steps to the end of training.
    share: which of the num_samples of all devices, from `start` on, are this one's.
    """

    def __init__(
        self,
        num_examples: int,
        num_samples: int,
        seed: int,
        start: int = 0,
        share: Share = Share(),
    ) -> None:
        self.num_examples, self.num_samples, self.seed = num_examples, num_samples, seed
        self.start, self.share = start, share

    def __len__(self) -> int:
        return self.num_samples // self.share.world

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        for sample in range(self.num_samples):
            if sample % self.num_examples == 0:
                order = torch.randperm(self.num_examples, generator=generator).tolist()
            if sample >= self.start and self.share.has(sample):
                yield order[sample % self.num_examples]


class Part(Dataset[dict[str, Any]]):
    """One rank's examples of a held-out split. All ranks have as many, so that they stay in step;
    behind the last one come fillers, whose labels do not count."""

    def __init__(self, examples: Any, rank: int, world: int) -> None:
        self.examples, self.rank, self.world = examples, rank, world

    def __len__(self) -> int:
        return -(-len(self.examples) // self.world)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index * self.world + self.rank
        if number < len(self.examples):
            found: dict[str, Any] = self.examples[number]
            return found
        filler = self.examples[0]
        return {**filler, "labels": torch.full_like(filler["labels"], IGNORED)}


def start_method(num_workers: int) -> str | None:
    """Workers are copies of this process where that can be had: then nothing is sent to them."""
    return "fork" if num_workers and sys.platform == "linux" else None
