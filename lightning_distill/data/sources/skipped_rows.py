"""Rows that cannot be used: refused with their place, or left out and counted."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lightning_distill.data.sources.readers import Located, TableRow
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")


class SkippedRows:
    """Counts the rows that cannot be used. allowed: or raises for the first."""

    def __init__(self, allowed: bool) -> None:
        self.allowed, self.bad, self.total, self.first = allowed, 0, 0, ""

    def filter(self, rows: Iterable[Located], parse: Callable[[Any], Parsed]) -> Iterator[Parsed]:
        """What `parse` returns for the rows that it accepts."""
        for where, row in rows:
            self.total += 1
            try:
                parsed = parse(row)
            except ConfigError as error:
                message = f"{where}: {str(error).rstrip('.')}"
                if not self.allowed:
                    raise ConfigError(
                        f"data: {message}. data.skip_bad_rows=true leaves such rows out."
                    ) from error
                self.bad, self.first = self.bad + 1, self.first or message
                continue
            yield parsed

    def report(self) -> None:
        if self.bad:
            log.warning(
                "data: skipped %d of %d rows; the first: %s", self.bad, self.total, self.first
            )


def text_of(row: TableRow, column: str, may_be_blank: bool = False) -> str:
    """A row's text. Raises ConfigError where it is no text, or blank."""
    text = row[column]
    if text is None:
        raise ConfigError(f"{column} is null")
    if not isinstance(text, str):
        raise ConfigError(f"{column} is {type(text).__name__}, not text")
    if not may_be_blank and not text.strip():
        raise ConfigError(f"{column} is empty")
    return text
