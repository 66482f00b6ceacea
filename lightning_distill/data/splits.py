"""The train, validation and test splits, by the hashes of a source's items."""

import hashlib
from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

from lightning_distill.errors import ConfigError

SPLITS = ("train", "validation", "test")
HELD_OUT = 18  # one document in 18 is for validation, and one for the test

Item = TypeVar("Item")


def split_by_hash(
    hashed: Iterable[tuple[str, Item]], what: str, held_out: int = HELD_OUT
) -> dict[str, list[Item]]:
    """The distinct items of each split, in the order of their hashes.

    One item in `held_out` is for validation, one for the test. Reordering a source changes nothing,
    and adding an item moves few others. what: the items' name in the error message.
    """
    by_hash = dict(hashed)
    items = iter([by_hash[key] for key in sorted(by_hash)])
    sizes = split_sizes(len(by_hash), what, held_out)
    return {split: list(islice(items, size)) for split, size in sizes.items()}


def split_sizes(count: int, what: str, held_out: int = HELD_OUT) -> dict[str, int]:
    """The size of each split of `count` items, in the order in which hashes are assigned."""
    if count < len(SPLITS):
        raise ConfigError(
            f"data: its source holds {count} {what}; the {', '.join(SPLITS)} splits need "
            "one each. Bring more."
        )
    held = -(-count // held_out)
    return {"test": held, "validation": held, "train": count - 2 * held}


def split_of(text: str) -> str:
    """A streamed document's split, from its hash alone: it is in one split wherever it recurs."""
    number = int.from_bytes(digest(text.encode("utf-8", "surrogatepass"))[:8], "big")
    return {0: "test", 1: "validation"}.get(number * HELD_OUT >> 64, "train")


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices below `count`, at equal distances."""
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]


def sha256(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass")).hex()


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
