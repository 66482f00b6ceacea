"""Your own text, in a file or a folder of files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lightning_distill import ConfigError
from lightning_distill.artifacts import hash_of
from lightning_distill.data.rows import READERS

SUFFIXES = (".txt", ".jsonl", ".parquet")
PIECE = 1500  # characters: a long text is cut up, because the splits are made by document


def pieces(text: str) -> Iterator[str]:
    """Cuts after 1,500 to 3,000 characters: at a blank line, else a line's end, else a space."""
    start = 0
    while start < len(text):
        low, high = start + PIECE, start + 2 * PIECE
        ends = (text.find(mark, low, high) + len(mark) for mark in ("\n\n", "\n", " "))
        stop = next((end for end in ends if end > low), high)
        if text[start:stop].strip():
            yield text[start:stop].strip("\n")
        start = stop


class Text:
    """Documents from .txt (cut into pieces), .jsonl and .parquet (one a row) files.

    path: a file, or a folder that is searched through. column: where a row's text is.
    Raises ConfigError when there is no such file or it cannot be read as what its name says.
    """

    def __init__(self, path: str, column: str = "text") -> None:
        self.path = Path(path).expanduser()
        self.column = column
        if not self.path.exists():
            raise ConfigError(f"data.path={path} does not exist.")
        self.files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        self.files = [f for f in self.files if f.suffix in SUFFIXES and f.is_file()]
        if not self.files:
            raise ConfigError(f"data.path={path} holds no file that ends in {', '.join(SUFFIXES)}.")
        if not any(f.stat().st_size for f in self.files):
            raise ConfigError(f"data.path={path} is empty.")

    def fingerprint(self) -> str:
        content = " ".join(f"{f.suffix}:{hash_of(f)}" for f in self.files)
        return f"text {self.column} {hashlib.sha256(content.encode()).hexdigest()}"

    def documents(self) -> Iterator[str]:
        for file in self.files:
            try:
                if file.suffix == ".txt":
                    yield from pieces(file.read_text(encoding="utf-8"))
                    continue
                for where, row in READERS[file.suffix](file, self.column):
                    if isinstance(row, Exception):
                        raise ConfigError(f"data.path: {where}: {row}.")
                    yield self._text_of(row, where)
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path: {file} is not UTF-8 text ({error}).") from error

    def _text_of(self, row: object, where: str) -> str:
        if not isinstance(row, dict) or self.column not in row:
            there = ", ".join(map(str, row)) if isinstance(row, dict) else ""
            raise ConfigError(
                f"data.column={self.column}: {where} has no such column; it has: "
                f"{there or 'nothing'}."
            )
        text = row[self.column]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ConfigError(f"data.column={self.column}: {where} holds a {kind}, not text.")
        return text
