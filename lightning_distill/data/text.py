"""Your own text, in a file or a folder of files."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from lightning_distill import ConfigError
from lightning_distill.artifacts import hash_of

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
            read = {".txt": self._txt, ".jsonl": self._jsonl, ".parquet": self._parquet}
            try:
                yield from read[file.suffix](file)
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path: {file} is not UTF-8 text ({error}).") from error

    def _txt(self, file: Path) -> Iterator[str]:
        yield from pieces(file.read_text(encoding="utf-8"))

    def _jsonl(self, file: Path) -> Iterator[str]:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError(f"data.path: {file}, line {number}: {error}.") from error
                yield self._text_of(row, f"{file}, line {number}")

    def _parquet(self, file: Path) -> Iterator[str]:
        import pyarrow.parquet as pq
        from pyarrow import ArrowInvalid

        try:
            table = pq.ParquetFile(file)
        except ArrowInvalid as error:
            raise ConfigError(f"data.path: {file} is not a Parquet file ({error}).") from error
        if self.column not in table.schema_arrow.names:
            self._missing_column(table.schema_arrow.names, str(file))
        row = 0
        for batch in table.iter_batches(columns=[self.column]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield self._text_of({self.column: text}, f"{file}, row {row}")

    def _text_of(self, row: object, where: str) -> str:
        if not isinstance(row, dict) or self.column not in row:
            self._missing_column(list(row) if isinstance(row, dict) else [], where)
        text = row[self.column]  # type: ignore[index]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ConfigError(f"data.column={self.column}: {where} holds a {kind}, not text.")
        return text

    def _missing_column(self, names: list[str], where: str) -> None:
        there = ", ".join(map(str, names)) or "nothing"
        raise ConfigError(
            f"data.column={self.column}: {where} has no such column; it has: {there}."
        )
