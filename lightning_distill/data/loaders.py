"""The order of training examples, and their distribution over ranks."""

import sys
import time
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lightning_distill.constants import IGNORED
from lightning_distill.data.mixture import shuffled

MAX_PREFETCHED = 8  # batches that a trainer may have fetched and not yet trained on


class Examples(Protocol):
    """One split. An example is a dictionary of tensors: the inputs by their transformers names,
    `labels` (-100 where nothing is predicted), and `block`, its index in the split.
    """

    @property
    def positions(self) -> int:
        """Predictions per example, those without a label included."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class First:
    """The first `count` examples of a split."""

    examples: Examples
    count: int

    @property
    def positions(self) -> int:
        return self.examples.positions

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.examples[index]


class TimedLoader(DataLoader):
    """A DataLoader that measures how long its batches were waited for."""

    wait_seconds = 0.0

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
                    f"a loader process (data.num_workers={self.num_workers}) was killed, perhaps "
                    "for lack of memory; running the same command again resumes at the last "
                    "checkpoint"
                ) from error
            self.wait_seconds += time.perf_counter() - start
            yield batch


def make_loader(
    examples: Any, batch_size: int, collate: Any, workers: int, sampler: Any = None
) -> DataLoader:
    """workers: processes that load, 0 for none. sampler: None for the order of the examples."""
    if not isinstance(examples, Sized) and sampler is None:
        sampler = count()
    return TimedLoader(
        examples,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        multiprocessing_context=worker_start_method(workers),
    )


@dataclass(frozen=True)
class RankShare:
    """Every world-th micro-batch of all samples, starting with the rank-th.

    A step therefore sees the same examples on any number of devices.
    """

    rank: int = 0
    world: int = 1
    batch_size: int = 1

    def has(self, sample: int) -> bool:
        return sample // self.batch_size % self.world == self.rank


class TrainSampler(Sampler[int]):
    """Indices of the examples of a whole training run, shuffled anew in each pass over them.

    One run is one Lightning epoch, so that its progress bar counts steps to the end of training.
    share: this rank's part of the num_samples of all ranks; those before `start` are skipped.
    parts, weights: the source of each example [N], and how often each source is drawn; each is then
    shuffled anew in passes of its own.
    """

    def __init__(
        self,
        num_examples: int,
        num_samples: int,
        seed: int,
        start: int = 0,
        share: RankShare = RankShare(),
        parts: Tensor | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.num_samples, self.seed = num_samples, seed
        self.start, self.share = start, share
        self.groups, self.weights = [torch.arange(num_examples)], [1.0]
        if parts is not None and weights is not None:
            present = parts.unique().tolist()
            self.groups = [(parts == part).nonzero()[:, 0] for part in present]
            self.weights = [weights[part] for part in present]

    def __len__(self) -> int:
        return self.num_samples // self.share.world

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        indices = shuffled(self.groups, self.weights, generator)
        for sample, index in enumerate(islice(indices, self.num_samples)):
            if sample >= self.start and self.share.has(sample):
                yield index


class HeldOutShard(Dataset[dict[str, Any]]):
    """One rank's examples of a held-out split.

    All ranks get equally many, as collectives require; the missing ones are copies of the first
    example without labels.
    """

    def __init__(self, examples: Any, rank: int, world: int) -> None:
        self.examples, self.rank, self.world = examples, rank, world

    def __len__(self) -> int:
        return -(-len(self.examples) // self.world)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index * self.world + self.rank
        if number < len(self.examples):
            example: dict[str, Any] = self.examples[number]
            return example
        padding = self.examples[0]
        return {**padding, "labels": torch.full_like(padding["labels"], IGNORED)}


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices below `count`, at equal distances."""
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]


def collate_trimmed(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch without the columns of input_ids that are padding in every row."""
    batch: dict[str, Any] = default_collate(examples)
    longest = int(batch["attention_mask"].sum(-1).max())
    names = ("input_ids", "attention_mask")
    return batch | {name: batch[name][:, :longest].contiguous() for name in names}


def worker_start_method(num_workers: int) -> str | None:
    """Linux forks its loader processes, so that the data set is not copied to them."""
    return "fork" if num_workers and sys.platform == "linux" else None
