"""What is asked of a source of documents: some, from a place on, and which are held out."""

import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from lightning_distill.data.sources.readers import gathered
from lightning_distill.data.splits import HELD_OUT, digest
from lightning_distill.errors import ConfigError

EDITION = 1  # raise it when other documents are held out of a stream, or read of it


class Source(Protocol):
    """What a file of this package offers: documents, and a text that changes when they do.

    It may know `chunks(place)` too, some documents at a time with the place where they begin, and
    `stamp()`, a fingerprint for which nothing large is read.
    """

    def fingerprint(self) -> str: ...

    def documents(self) -> Iterator[str]: ...


def check_streams(source: Any) -> None:
    """Raises ConfigError where a source gives all of its documents at once."""
    if not (hasattr(source, "chunks") or inspect.isgeneratorfunction(source.documents)):
        raise ConfigError(
            f"data.streaming=true: {type(source).__name__} cannot be streamed, its documents() is "
            "no generator. Set data.streaming=false."
        )


def split_of(text: str) -> str:
    """By the text alone, so that no document is in two splits, however often it comes."""
    number = int.from_bytes(digest(text.encode("utf-8", "surrogatepass"))[:8], "big")
    return {0: "test", 1: "validation"}.get(number * HELD_OUT >> 64, "train")


def held_out(source: Any, most: int) -> dict[str, list[str]]:
    """The first different documents of each held-out split, `most` at most.

    Raises ConfigError where there is none, or none to train on.
    """
    found: dict[str, dict[str, None]] = {"validation": {}, "test": {}, "train": {}}
    read = 0
    for text in texts_of(source):
        of_split = found[split_of(text)]
        if len(of_split) < most:
            of_split[text] = None
        read += 1
        if all(len(texts) == most for texts in found.values()):
            break
    for split, texts in found.items():
        if not texts:
            raise ConfigError(
                f"data.streaming=true leaves no document to the {split} split, of {read} there "
                f"are: one in {HELD_OUT} is for validation, and one for the test. Bring more, or "
                "set data.streaming=false."
            )
    del found["train"]
    return {split: list(texts) for split, texts in found.items()}


def first_texts(source: Any, megabytes: float) -> Iterator[str]:
    """The first documents of the train split."""
    left = megabytes * 1e6
    for text in texts_of(source):
        if left <= 0:
            return
        if split_of(text) == "train":
            left -= len(text.encode("utf-8", "surrogatepass"))
            yield text


def texts_of(source: Any) -> Iterator[str]:
    return (text for _, texts in chunks_of(source, None) for text in texts if text.strip())


def chunks_of(source: Any, place: Any) -> Iterator[tuple[Any, list[str]]]:
    """Some documents at a time, with the place where they begin; from a place on. Of a source that
    knows no places, it is how many documents are before it."""
    if hasattr(source, "chunks"):
        yield from source.chunks(place)
        return
    (begin,) = place or (0,)
    for texts in gathered(islice(source.documents(), begin, None)):
        yield (begin,), texts
        begin += len(texts)
