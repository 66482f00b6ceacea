"""The interface of sources, and the reading of documents from any position.

A source is a class in a file of its own, built from the settings of `data=` that only it needs.
"""

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_distill.data.sources.readers import batch_texts
from lightning_distill.data.splits import SplitSources, check_held_out
from lightning_distill.errors import ConfigError

VERSION = 1  # raise it when a stream holds out other documents, or reads them otherwise

Message = dict[str, Any]  # of a conversation: role, content, and perhaps tool_calls
Pixels = NDArray[np.uint8]  # [C, H, W], 0 to 255
Row = TypeVar("Row", covariant=True)
Parsed = TypeVar("Parsed")


class Pair(NamedTuple):
    """A text and its translation. Pairs with the same key are never in different splits."""

    source: str
    target: str
    key: str


class Conversation(NamedTuple):
    """tools: schemas of the functions that the assistant may call, as chat templates take them."""

    messages: list[Message]
    tools: list[Any] | None = None


class Source(Protocol[Row]):
    """What a task reads. A row is

    - str, a document (CausalLM, MaskedLM),
    - (text, label), both str (Classification),
    - (pixels [C, H, W], class), Pixels and str (Images),
    - Pair (Translation).

    A source of documents may also have `read_from(position)`, which yields (position, documents)
    from a position on, and `quick_fingerprint()`, for which no large file is read.
    """

    def fingerprint(self) -> str:
        """A text that changes when the rows do."""

    def rows(self) -> Iterator[Row]: ...


class ConversationSource(Protocol):
    """What Chat reads: conversations of messages {"role", "content"}."""

    def fingerprint(self) -> str:
        """A text that changes when the conversations do."""

    def read(self, parse: Callable[[Conversation], Parsed]) -> Iterator[Parsed]:
        """The results of `parse`; a ConfigError that it raises is reported with its row."""


def check_streams(sources: SplitSources) -> None:
    """Raises ConfigError where the train source holds all of its documents in memory, or the number
    of them would decide what is held out."""
    if sources.is_mixture:
        raise ConfigError("data.mixture needs data.streaming=false.")
    source = sources.train
    if not (hasattr(source, "read_from") or inspect.isgeneratorfunction(source.rows)):
        raise ConfigError(
            f"data.streaming=true: {type(source).__name__} cannot be streamed, its rows() is "
            "no generator. Set data.streaming=false."
        )
    if sources.share is None:
        raise ConfigError(
            f"data.held_out={sources.held_out} must be a share, as in 0.1, with "
            "data.streaming=true; data.held_out_documents limits the number."
        )


def held_out(sources: SplitSources, limit: int) -> dict[str, list[str]]:
    """The first `limit` distinct documents of the validation and of the test split.

    Raises ConfigError where a split, the train split included, has no document.
    """
    from_files = {
        split: dict.fromkeys(islice(documents(source), limit))
        for split, source in sources.held_out_sources.items()
    }
    for split, texts in from_files.items():
        check_held_out(split, len(texts), "documents")
    splits: dict[str, dict[str, None]] = {s: {} for s in (*sources.from_train[::-1], "train")}
    read = 0
    for text in documents(sources.train):
        of_split = splits[sources.split_of(text)]
        if len(of_split) < limit:
            of_split[text] = None
        read += 1
        if all(len(texts) == limit for texts in splits.values()):
            break
    for split, texts in splits.items():
        if not texts:
            raise ConfigError(
                f"data.streaming=true leaves the {split} split without a document, of {read} that "
                f"were read; {sources.share} of them validate, and as many test. Bring more, or "
                "set data.streaming=false."
            )
    return {split: list((from_files | splits)[split]) for split in ("validation", "test")}


def first_train_documents(sources: SplitSources, megabytes: float) -> Iterator[str]:
    left = megabytes * 1e6
    for text in documents(sources.train):
        if left <= 0:
            return
        if sources.split_of(text) == "train":
            left -= len(text.encode("utf-8", "surrogatepass"))
            yield text


def documents(source: Any) -> Iterator[str]:
    """The documents that are not blank."""
    return (text for _, texts in read_from(source, None) for text in texts if text.strip())


def read_from(source: Any, position: Any) -> Iterator[tuple[Any, list[str]]]:
    """(position, documents that begin there), from a position on; None for the start.

    Of a source without `read_from`, a position is the number of documents before it.
    """
    if hasattr(source, "read_from"):
        yield from source.read_from(position)
        return
    (begin,) = position or (0,)
    for texts in batch_texts(islice(source.rows(), begin, None)):
        yield (begin,), texts
        begin += len(texts)
