"""Progress bars in a terminal, and nothing in logs."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")

# What is done, how much of it, and the time left.
FORMAT = "{desc} {percentage:3.0f} % {bar:12} {n_fmt}/{total_fmt} · {remaining} left{postfix}"
UNSIZED = "{desc} {n_fmt} · {elapsed}"
_hidden = ContextVar("hidden", default=False)


def is_shown() -> bool:
    return sys.stderr.isatty() and not _hidden.get()


@contextmanager
def hidden() -> Iterator[None]:
    """Within it, no bar is shown."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


def progress(items: Iterable[Item], description: str) -> Iterable[Item]:
    """The items, with a bar in a terminal that goes when they end."""
    if not is_shown():
        return items
    from tqdm import tqdm  # here, so that `--help` does not import it

    bar_format = FORMAT if isinstance(items, Sized) else UNSIZED
    return tqdm(items, description, leave=False, delay=1, bar_format=bar_format)
