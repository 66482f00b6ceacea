"""Your own conversations: messages, [{"role": "user", "content": "…"}, …], and other forms."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from lightning_distill.data.messages import conversation_of
from lightning_distill.data.sources.base import Conversation
from lightning_distill.data.sources.row_files import Names, RowFiles

Parsed = TypeVar("Parsed")


class Conversations:
    """A row is a conversation, in one of the forms of `conversation_of`.

    path, skip_bad_rows: see `RowFiles`. column: where a row's messages are.
    """

    def __init__(self, path: Names, column: str, skip_bad_rows: bool) -> None:
        self.column = column
        self.files = RowFiles(path, {}, skip_bad_rows)

    def fingerprint(self) -> str:
        return f"conversations 2 {self.column} {self.files.fingerprint()}"

    def read(self, parse: Callable[[Conversation], Parsed]) -> Iterator[Parsed]:
        return self.files.read(lambda row: parse(conversation_of(row, self.column)))
