"""Imports of large libraries, without what they log while they start."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


@contextmanager
def quiet_start() -> Iterator[None]:
    """Within it, nothing below level ERROR is logged.

    transformers imports torchao where it is installed, which logs a line for each of its kernels
    that this machine lacks. What a library logs later is shown.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def import_quietly(name: str) -> ModuleType:
    """A module of this package, and the libraries that it imports."""
    with quiet_start():
        return import_module(name)
