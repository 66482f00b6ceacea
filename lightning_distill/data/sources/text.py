"""Your own text, in a file or a folder of files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.data.sources.readers import CHUNKS, Place
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import hash_of


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
        self.files = [f for f in self.files if f.suffix in CHUNKS and f.is_file()]
        if not self.files:
            raise ConfigError(f"data.path={path} holds no file that ends in {', '.join(CHUNKS)}.")
        if not any(f.stat().st_size for f in self.files):
            raise ConfigError(f"data.path={path} is empty.")

    def fingerprint(self) -> str:
        content = " ".join(f"{f.suffix}:{hash_of(f)}" for f in self.files)
        return f"text {self.column} {hashlib.sha256(content.encode()).hexdigest()}"

    def stamp(self) -> str:
        """Like the fingerprint, without reading them: of files that are large."""
        root = self.path.parent if self.path.is_file() else self.path
        files = [(str(f.relative_to(root)), f.stat()) for f in self.files]
        return f"text {self.column} {[(name, s.st_size, s.st_mtime_ns) for name, s in files]}"

    def documents(self) -> Iterator[str]:
        for _, found in self.chunks(None):
            yield from found

    def chunks(self, place: Place | None) -> Iterator[tuple[Place, list[str]]]:
        """Some documents at a time, and the place where they begin; from such a place on."""
        first, *inner = place or (0,)
        for number in range(first, len(self.files)):
            file = self.files[number]
            start = tuple(inner) if number == first and inner else None
            try:
                for where, found in CHUNKS[file.suffix](file, self.column, start):
                    yield (number, *where), [self._text_of(row, at) for at, row in found]
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path: {file} is not UTF-8 text ({error}).") from error

    def _text_of(self, row: object, where: str) -> str:
        if isinstance(row, Exception):
            raise ConfigError(f"data.path: {where}: {row}.")
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
