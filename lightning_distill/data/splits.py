"""What is trained on and what is held out, by the hashes of a source's items."""

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
    """Items to the splits that their hashes say, each in the order of these, none twice.

    One in `held_out` is for validation, and one for the test; so neither the order of a source nor
    one more item moves the others much. what: the items' name, for the message.
    """
    by_hash = dict(hashed)
    items = iter([by_hash[key] for key in sorted(by_hash)])
    sizes = split_sizes(len(by_hash), what, held_out)
    return {split: list(islice(items, size)) for split, size in sizes.items()}


def split_sizes(count: int, what: str, held_out: int = HELD_OUT) -> dict[str, int]:
    """How many of so many items each split has, in the order of their hashes."""
    if count < len(SPLITS):
        raise ConfigError(
            f"data: its source holds {count} {what}; the {', '.join(SPLITS)} splits need "
            "one each. Bring more."
        )
    held = -(-count // held_out)
    return {"test": held, "validation": held, "train": count - 2 * held}


def sha256(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass")).hex()


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
