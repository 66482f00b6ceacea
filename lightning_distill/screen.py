"""The lines of a command on the screen: whole words, short paths, and each once a sweep."""

import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from time import monotonic
from typing import Any, TextIO

INDENT = "  "  # of a line's continuation
ONCE = {"once": True}  # `extra` of a record whose line is shown once a command, and logged always

_shown: set[str] = set()
_last: list[tuple[str, float]] = []  # the line that was logged last, and when


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
        _last[:] = [((record.getMessage().splitlines() or [""])[0][:60], monotonic())]
        with above_bars(self.stream):
            super().emit(record)


def above_bars(stream: TextIO) -> AbstractContextManager[None]:
    """What is written to the stream within it does not run into a progress bar."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)  # if none, no bar is shown either
    return nullcontext() if bars is None else bars.external_write_mode(stream)


def begin_command() -> None:
    """What earlier commands of this process have shown is shown again."""
    _shown.clear()


def last_line(since: float, default: str) -> tuple[str, float]:
    """The line that was logged last, shortened, and when, as `time.monotonic`; what is given if
    there was none since."""
    return _last[0] if _last and _last[0][1] >= since else (default, since)


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
