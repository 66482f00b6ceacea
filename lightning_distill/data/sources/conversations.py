"""Your own conversations, in a column of messages: [{"role": "user", "content": "…"}, …]."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from lightning_distill.data.chat_template import Message, check_messages
from lightning_distill.data.sources.rows import Rows

Read = TypeVar("Read")


class Conversations:
    """One a row of .jsonl or .parquet files, or of a `datasets` data set.

    column: where a row's messages are. skip_bad_rows: leave out what cannot be read, and say so.
    """

    def __init__(self, path: str, column: str, skip_bad_rows: bool) -> None:
        self.column = column
        self.rows = Rows(path, {"data.column": column}, skip_bad_rows)

    def fingerprint(self) -> str:
        return self.rows.fingerprint()

    def read(self, one: Callable[[list[Message]], Read]) -> Iterator[Read]:
        """What `one` makes of each conversation; a ConfigError of its is about that row."""
        return self.rows.read(lambda row: one(check_messages(row[self.column])))
