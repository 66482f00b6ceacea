"""Text that is read, tokenized and cut into blocks during training.

source → chunks of documents → tokens → one stream of blocks, in the order of the source, which
starts again at its end. A document's hash decides whether it is held out. Only the current chunk is
in memory; an interrupted run resumes at the position where that chunk begins.
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

from lightning_distill.data.loaders import worker_start_method
from lightning_distill.data.packing import Blocks
from lightning_distill.data.sources.base import read_from
from lightning_distill.data.splits import SplitSources
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)


class StreamPosition(NamedTuple):
    """A place in the stream: the pass over the source, the chunk's number over all passes, the
    chunk's position in the source, and how many of the chunk's tokens were used."""

    epoch: int = 0
    chunk: int = 0
    source_position: Any = None
    tokens: int = 0


class TokenChunk(NamedTuple):
    """The train documents among some consecutive documents of the source."""

    position: StreamPosition
    tokens: Tensor  # [S], each document closed by the separator
    lengths: Tensor  # [D], tokens of each document


class TokenChunks(IterableDataset[TokenChunk]):
    """This rank's chunks from a position on, in endless passes.

    Several loader workers take turns, so that the chunks' order does not depend on their number.
    """

    def __init__(
        self,
        sources: SplitSources,
        tokenizer: PreTrainedTokenizerBase,
        before: list[int],
        separator: list[int],
        begin: StreamPosition,
        rank: int,
        world: int,
    ) -> None:
        self.sources, self.tokenizer = sources, tokenizer
        self.before, self.separator = before, separator
        self.begin, self.rank, self.world = begin, rank, world

    def __iter__(self) -> Iterator[TokenChunk]:
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        turn = 0
        for position, texts in self._texts():
            if position.chunk % self.world == self.rank:
                if turn % num_workers == worker_id:
                    yield self._tokenize(position, texts)
                turn += 1

    def _texts(self) -> Iterator[tuple[StreamPosition, list[str]]]:
        """The chunks of all ranks, before tokenization."""
        epoch, chunk, source_position, _ = self.begin
        while True:
            for here, texts in read_from(self.sources.train, source_position):
                yield StreamPosition(epoch, chunk, here), texts
                chunk += 1
            epoch, source_position = epoch + 1, None

    def _tokenize(self, position: StreamPosition, texts: list[str]) -> TokenChunk:
        split_of = self.sources.split_of
        train = [text for text in texts if text.strip() and split_of(text) == "train"]
        # Tokenizers refuse an empty list.
        ids = train and self.tokenizer(train, add_special_tokens=False, verbose=False)["input_ids"]
        documents = [[*self.before, *row, *self.separator] for row in ids]
        tokens = torch.tensor([i for row in documents for i in row], dtype=torch.int32)
        return TokenChunk(position, tokens, torch.tensor([len(row) for row in documents]).long())


class StreamedBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of T tokens of an endless text, which must be asked for in order.

    The blocks depend on the number of ranks, each of which packs its own chunks, and not on the
    number of workers.
    """

    def __init__(
        self,
        sources: SplitSources,
        tokenizer: PreTrainedTokenizerBase,
        before: list[int],
        separator: list[int],
        sequence_length: int,
        isolate_documents: bool,
        num_workers: int,
    ) -> None:
        self.text = sources, tokenizer, before, separator
        self.positions, self.isolate_documents = sequence_length, isolate_documents
        self.num_workers = num_workers
        self.begin(None, 0, 1, 0, 1)

    def begin(
        self,
        state: dict[str, Any] | None,
        rank: int,
        world: int,
        num_samples: int,
        num_states: int,
    ) -> "ResumedSampler":
        """Starts at a state, or at the beginning, and returns the order in which to ask for blocks.

        num_samples: blocks of the whole run, those before the state included.
        num_states: how many of the latest blocks `state` can be asked for.
        Raises ConfigError where the state is of another number of ranks.
        """
        self.rank, self.world, self.num_states = rank, world, num_states
        marks = state["marks"] if state else [StreamPosition()] * world
        if len(marks) != world:
            raise ConfigError(
                f"data.streaming=true: this run started on {len(marks)} devices and resumes on "
                f"as many, not on {world}. Set trainer.devices={len(marks)}, or start a new run."
            )
        self.next: int = state["start"] if state else 0
        position = StreamPosition(*marks[rank])
        self._positions = {self.next: position}
        chunks = load_chunks(TokenChunks(*self.text, position, rank, world), self.num_workers)
        # The generator holds no reference to this object, so that its workers end with it.
        bos = self.text[2][0] if self.text[2] else None
        self._blocks = pack_chunks(chunks, position, self.positions, self.isolate_documents, bos)
        return ResumedSampler(self.next, num_samples)

    def close(self) -> None:
        """Ends the workers."""
        self._blocks = iter(())

    def state(self, start: int) -> dict[str, Any]:
        """The state of all ranks before block `start`, for `begin`."""
        positions = process_group.all_gather(tuple(self._positions[start]))
        return {"start": start, "marks": positions}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids, labels and position_ids of one block, each [T], and its index."""
        assert index == self.next, f"block {index} of a stream, where {self.next} comes next"
        block, position = next(self._blocks)
        self.next += 1
        self._positions[self.next] = position
        self._positions.pop(self.next - self.num_states - 1, None)
        return block | {"block": torch.tensor(index * self.world + self.rank)}


def pack_chunks(
    chunks: Iterator[TokenChunk],
    begin: StreamPosition,
    length: int,
    isolate_documents: bool,
    bos: int | None = None,
) -> Iterator[tuple[dict[str, Tensor], StreamPosition]]:
    """Blocks of `length` tokens without their index, each with the position behind it."""
    tokens, documents = torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.long)
    pending: deque[tuple[StreamPosition, int]] = deque()  # chunks of `tokens`, and their lengths
    for position, new, lengths in chunks:
        used = begin.tokens if position.chunk == begin.chunk else 0
        numbers = torch.arange(len(lengths)).repeat_interleave(lengths)[used:]
        offset = int(documents[-1]) + 1 if len(documents) else 0
        tokens = torch.cat([tokens, new[used:]])
        documents = torch.cat([documents, numbers + offset])
        if len(new) > used:
            pending.append((position._replace(tokens=used), len(new)))
        while len(tokens) > length:
            first = slice(length + 1)
            block = Blocks(tokens[first], documents[first], length, isolate_documents, None, bos)[0]
            tokens, documents = tokens[length:], documents[length:]
            _advance(pending, length)
            yield block, pending[0][0]


def load_chunks(chunks: TokenChunks, num_workers: int) -> Iterator[TokenChunk]:
    """The chunks, tokenized by loader workers."""
    loader = DataLoader(
        chunks,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        worker_init_fn=_use_one_thread,
        generator=torch.Generator(),  # leaves the global RNG as it is
        multiprocessing_context=worker_start_method(num_workers),
    )
    epoch = chunks.begin.epoch
    for chunk in loader:
        if chunk.position.epoch > epoch:
            epoch = chunk.position.epoch
            log.info("data: the source begins again, pass %d", epoch + 1)
        yield chunk


class ResumedSampler(Sampler[int]):
    """The indices start, start + 1, …, num_samples − 1; its length counts the skipped ones too."""

    def __init__(self, start: int, num_samples: int) -> None:
        self.start, self.num_samples = start, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.num_samples))


def _advance(pending: deque[tuple[StreamPosition, int]], tokens: int) -> None:
    """Marks so many of the pending chunks' tokens as used, and drops chunks that are used up."""
    while True:
        position, length = pending.popleft()
        step = min(tokens, length - position.tokens)
        tokens -= step
        if position.tokens + step < length:
            pending.appendleft((position._replace(tokens=position.tokens + step), length))
            return


def _unchanged(chunk: Any) -> Any:
    return chunk


def _use_one_thread(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
