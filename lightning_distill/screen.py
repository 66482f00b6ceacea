"""The lines of a command on the screen: whole words, short paths, and each once a sweep."""

import logging
import os
import sys
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

INDENT = "  "  # of a line's continuation
ONCE = {"once": True}  # `extra` of a record whose line is shown once a command, and logged always

_shown: set[str] = set()


class ScreenHandler(logging.StreamHandler[Any]):
    """Writes lines that break between words, and above a progress bar instead of into it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "once", False):
            message = record.getMessage()
            if message in _shown:
                return False
            _shown.add(message)
        return bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return fit_lines(text, get_terminal_size().columns) if self.stream.isatty() else text

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm.std")  # none is shown before it is imported
        if bars is None:
            super().emit(record)
            return
        with bars.tqdm.external_write_mode(self.stream):
            super().emit(record)


def begin_command() -> None:
    """What earlier commands of this process have shown is shown again."""
    _shown.clear()


def fit_lines(text: str, width: int) -> str:
    """Broken between words; a word that is longer than a line, such as a path, stays whole."""
    lines = text.splitlines() or [""]
    return "\n".join(line for long in lines for line in _broken(long, width))


def _broken(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    margin = line[: len(line) - len(line.lstrip())] + INDENT
    return wrap(
        line,
        width,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


def shown(path: Path | str) -> str:
    """A path as a line shows it: relative to the working directory, where that is shorter."""
    relative = os.path.relpath(path)
    return min(relative, str(path), key=len)
