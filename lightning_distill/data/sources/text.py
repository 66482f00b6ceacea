"""Your own text, in files."""

from collections.abc import Iterator

from lightning_distill.data.sources.readers import READERS, Position, TableRow
from lightning_distill.data.sources.row_files import Names, RowFiles
from lightning_distill.data.sources.skipped_rows import text_of


class Text:
    """A row is a document: a row of a table, or a piece of a .txt file. Blank ones are none.

    path, skip_bad_rows: see `RowFiles`. column: where a row's text is.
    """

    def __init__(self, path: Names, column: str = "text", skip_bad_rows: bool = False) -> None:
        self.column = column
        columns = {"data.column": column}
        self.files = RowFiles(path, columns, skip_bad_rows, tuple(READERS))

    def fingerprint(self) -> str:
        return f"text {self.files.fingerprint()}"

    def quick_fingerprint(self) -> str:
        return f"text {self.files.quick_fingerprint()}"

    def rows(self) -> Iterator[str]:
        for _, texts in self.read_from(None):
            yield from texts

    def read_from(self, position: Position | None) -> Iterator[tuple[Position, list[str]]]:
        """(position, documents that begin there)."""
        return self.files.read_from(position, self._text)

    def _text(self, row: TableRow) -> str:
        return text_of(row, self.column, may_be_blank=True)
