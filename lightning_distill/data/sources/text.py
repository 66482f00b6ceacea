"""Your own text, in a file or a folder of files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.data.sources.readers import READERS, Position
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import hash_of


class Text:
    """A row is a document: a row of .jsonl and .parquet files, a piece of a .txt file.

    path: a file, or a folder that is searched. column: where a row's text is.
    Raises ConfigError where there is no such file, or it does not hold what its name says.
    """

    def __init__(self, path: str, column: str = "text") -> None:
        self.path = Path(path).expanduser()
        self.column = column
        if not self.path.exists():
            raise ConfigError(f"data.path={path} does not exist.")
        self.files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        self.files = [f for f in self.files if f.suffix in READERS and f.is_file()]
        if not self.files:
            raise ConfigError(f"data.path={path} holds no file that ends in {', '.join(READERS)}.")
        if not any(f.stat().st_size for f in self.files):
            raise ConfigError(f"data.path={path} is empty.")

    def fingerprint(self) -> str:
        content = " ".join(f"{f.suffix}:{hash_of(f)}" for f in self.files)
        return f"text {self.column} {hashlib.sha256(content.encode()).hexdigest()}"

    def quick_fingerprint(self) -> str:
        """Of the files' names, sizes and modification times."""
        root = self.path.parent if self.path.is_file() else self.path
        files = [(str(f.relative_to(root)), f.stat()) for f in self.files]
        return f"text {self.column} {[(name, s.st_size, s.st_mtime_ns) for name, s in files]}"

    def rows(self) -> Iterator[str]:
        for _, texts in self.read_from(None):
            yield from texts

    def read_from(self, position: Position | None) -> Iterator[tuple[Position, list[str]]]:
        """(position, documents that begin there); a position is a file and a reader's position."""
        first, *inner = position or (0,)
        for number in range(first, len(self.files)):
            file = self.files[number]
            start = tuple(inner) if number == first and inner else None
            try:
                for here, rows in READERS[file.suffix](file, self.column, start):
                    yield (number, *here), [self._text_of(row, where) for where, row in rows]
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path: {file} is not UTF-8 text ({error}).") from error

    def _text_of(self, row: object, where: str) -> str:
        if isinstance(row, Exception):
            raise ConfigError(f"data.path: {where}: {row}.")
        if not isinstance(row, dict) or self.column not in row:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else ""
            raise ConfigError(
                f"data.column={self.column}: {where} has no such column; it has: "
                f"{columns or 'nothing'}."
            )
        text = row[self.column]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ConfigError(f"data.column={self.column}: {where} holds a {kind}, not text.")
        return text
