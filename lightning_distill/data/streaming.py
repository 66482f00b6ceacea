"""Text that is read, tokenized and cut into blocks while a model trains on it.

source → portions of documents → tokens → one stream of blocks, in the order of the source, which
begins again at its end. A document's hash says whether it is held out. Nothing is kept but the
portion at hand, and the place where it begins: from there an interrupted run goes on.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.loaders import start_method
from lightning_distill.data.packing import Blocks
from lightning_distill.data.sources.base import chunks_of, split_of
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)


class Mark(NamedTuple):
    """Where a portion begins: in which pass, which portion it is of all so far, and where in the
    source; and how many of its tokens are behind us."""

    round: int = 0
    number: int = 0
    place: Any = None
    tokens: int = 0


class Portion(NamedTuple):
    """The documents of the train split among some that follow each other."""

    mark: Mark
    tokens: Tensor  # [S], each document closed
    sizes: Tensor  # [D], how many of them each document has


class Portions(IterableDataset[Portion]):
    """Every portion that is this rank's, from a mark on, pass after pass without end; in a loader
    with several workers those of each in turn, so that they come in order whatever their number."""

    def __init__(
        self,
        source: Any,
        tokenizer: PreTrainedTokenizerBase,
        closing: list[int],
        begin: Mark,
        rank: int,
        world: int,
    ) -> None:
        self.source, self.tokenizer, self.closing = source, tokenizer, closing
        self.begin, self.rank, self.world = begin, rank, world

    def __iter__(self) -> Iterator[Portion]:
        worker = get_worker_info()
        lanes, lane = (worker.num_workers, worker.id) if worker else (1, 0)
        turn = 0
        for mark, texts in self._all():
            if mark.number % self.world == self.rank:
                if turn % lanes == lane:
                    yield self._portion(mark, texts)
                turn += 1

    def _all(self) -> Iterator[tuple[Mark, list[str]]]:
        round_, number, place, _ = self.begin
        while True:
            for here, texts in chunks_of(self.source, place):
                yield Mark(round_, number, here), texts
                number += 1
            round_, place = round_ + 1, None

    def _portion(self, mark: Mark, texts: list[str]) -> Portion:
        own = [text for text in texts if text.strip() and split_of(text) == "train"]
        # A tokenizer takes no empty list.
        found = own and self.tokenizer(own, add_special_tokens=False, verbose=False)["input_ids"]
        documents = [[*ids, *self.closing] for ids in found]
        tokens = torch.tensor([i for ids in documents for i in ids], dtype=torch.int32)
        return Portion(mark, tokens, torch.tensor([len(ids) for ids in documents]).long())


class Stream(Dataset[dict[str, Tensor]]):
    """Blocks of T tokens, of a text without an end; they can be asked for in their order alone.

    Every block is one rank's alone. The number of workers changes nothing, that of ranks does:
    each packs portions of its own.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: PreTrainedTokenizerBase,
        closing: list[int],
        sequence_length: int,
        isolate_documents: bool,
        num_workers: int,
    ) -> None:
        self.what = source, tokenizer, closing
        self.positions, self.isolate = sequence_length, isolate_documents
        self.num_workers = num_workers
        self.begin(None, 0, 1, 0, 1)

    def begin(
        self, state: dict[str, Any] | None, rank: int, world: int, samples: int, kept: int
    ) -> "InOrder":
        """Goes back to the start, or to a state; the order in which `samples` blocks, those before
        the state included, are then to be asked for. kept: how many blocks states may lag behind.

        Raises ConfigError where the state is of another number of ranks.
        """
        self.rank, self.world, self.kept = rank, world, kept
        marks = state["marks"] if state else [Mark()] * world
        if len(marks) != world:
            raise ConfigError(
                f"data.streaming=true: this run was begun on {len(marks)} devices and goes on on "
                f"as many, not on {world}. Set trainer.devices={len(marks)}, or start a new run."
            )
        self.next: int = state["start"] if state else 0
        mark = Mark(*marks[rank])
        self._marks = {self.next: mark}
        portions = loaded(Portions(*self.what, mark, rank, world), self.num_workers)
        # It knows nothing of this stream, so that workers stop when the stream is gone.
        self._blocks = blocks_of(portions, mark, self.positions, self.isolate)
        return InOrder(self.next, samples)

    def close(self) -> None:
        """Ends the workers."""
        self._blocks = iter(())

    def state(self, start: int) -> dict[str, Any]:
        """What `begin` goes on from, when so many blocks are behind us; of all ranks."""
        return {"start": start, "marks": process_group.all_gather(tuple(self._marks[start]))}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids, labels and position_ids of one block, each [T], and its number."""
        assert index == self.next, f"block {index} of a stream, where {self.next} comes next"
        block, mark = next(self._blocks)
        self.next += 1
        self._marks[self.next] = mark
        self._marks.pop(self.next - self.kept - 1, None)
        return block | {"block": torch.tensor(index * self.world + self.rank)}


def blocks_of(
    portions: Iterator[Portion], begin: Mark, length: int, isolate_documents: bool
) -> Iterator[tuple[dict[str, Tensor], Mark]]:
    """Blocks of so many tokens, without their numbers, and the mark behind each."""
    tokens, documents = torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.long)
    held: deque[tuple[Mark, int]] = deque()  # the portions that these tokens are of, their ends
    for mark, new, sizes in portions:
        done = begin.tokens if mark.number == begin.number else 0
        numbers = torch.arange(len(sizes)).repeat_interleave(sizes)[done:]
        follows = int(documents[-1]) + 1 if len(documents) else 0
        tokens = torch.cat([tokens, new[done:]])
        documents = torch.cat([documents, numbers + follows])
        if len(new) > done:
            held.append((mark._replace(tokens=done), len(new)))
        while len(tokens) > length:
            first = slice(length + 1)
            block = Blocks(tokens[first], documents[first], length, isolate_documents)[0]
            tokens, documents = tokens[length:], documents[length:]
            _move(held, length)
            yield block, held[0][0]


def loaded(portions: Portions, num_workers: int) -> Iterator[Portion]:
    """Portions as workers bring them."""
    loader = DataLoader(
        portions,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_alone,
        generator=torch.Generator(),  # the seed of everything else stays as it is
        multiprocessing_context=start_method(num_workers),
    )
    passes = portions.begin.round
    for portion in loader:
        if portion.mark.round > passes:
            passes = portion.mark.round
            log.info("data: the source begins again, pass %d", passes + 1)
        yield portion


class InOrder(Sampler[int]):
    """The numbers of a run's blocks, those behind us left out but counted."""

    def __init__(self, start: int, num_samples: int) -> None:
        self.start, self.num_samples = start, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.num_samples))


def _move(held: deque[tuple[Mark, int]], tokens: int) -> None:
    """So many tokens on, over the ends of portions."""
    while True:
        mark, end = held.popleft()
        step = min(tokens, end - mark.tokens)
        tokens -= step
        if mark.tokens + step < end:
            held.appendleft((mark._replace(tokens=mark.tokens + step), end))
            return


def _as_it_is(portion: Any) -> Any:
    return portion


def _alone(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread
