"""Progress bars in a terminal, and nothing in logs."""

import sys
from collections.abc import Iterable, Sized
from typing import TypeVar

Item = TypeVar("Item")

# What is done, how much of it, and the time left.
FORMAT = "{desc} {percentage:3.0f} % {bar:12} {n_fmt}/{total_fmt} · {remaining} left{postfix}"
UNSIZED = "{desc} {n_fmt} · {elapsed}"


def is_shown() -> bool:
    return sys.stderr.isatty()


def progress(items: Iterable[Item], description: str) -> Iterable[Item]:
    """The items, with a bar in a terminal that goes when they end."""
    if not is_shown():
        return items
    from tqdm import tqdm  # here, so that `--help` does not import it

    bar_format = FORMAT if isinstance(items, Sized) else UNSIZED
    return tqdm(items, description, leave=False, delay=1, bar_format=bar_format)
