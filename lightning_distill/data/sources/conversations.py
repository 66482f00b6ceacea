"""Your own conversations, in a column of messages: [{"role": "user", "content": "…"}, …]."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from lightning_distill.data.messages import check_messages
from lightning_distill.data.sources.base import Message
from lightning_distill.data.sources.table_files import TableFiles

Parsed = TypeVar("Parsed")


class Conversations:
    """A row is a conversation: of .jsonl or .parquet files, or of a `datasets` data set.

    column: where a row's messages are.
    skip_bad_rows: leave out rows that cannot be read, and log how many.
    """

    def __init__(self, path: str, column: str, skip_bad_rows: bool) -> None:
        self.column = column
        self.table = TableFiles(path, {"data.column": column}, skip_bad_rows)

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def read(self, parse: Callable[[list[Message]], Parsed]) -> Iterator[Parsed]:
        return self.table.read(lambda row: parse(check_messages(row[self.column])))
