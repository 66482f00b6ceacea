"""Readers of text files in chunks, from any position: no file is held in memory.

A reader yields chunks: the position where the chunk begins, from which reading can start again, and
its rows, each with its place in the file for error messages. A row that cannot be read is the error
itself.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_distill.errors import ConfigError

CHUNK = 2**18  # characters or bytes, about; a document is never cut by it
PIECE = 1500  # characters: a long text is cut, because splits are made of documents

# What json raises for a line: a syntax error, too long a number, or too deep nesting.
JSON_ERRORS = (ValueError, RecursionError)

Position = tuple[int, ...]
Located = tuple[str, Any]  # "file, line 3", and the row
Chunk = tuple[Position, list[Located]]

csv.field_size_limit(2**31 - 1)  # characters in a column; the default is 131,072


def pieces(text: str, is_end: bool = True) -> Iterator[str]:
    """Cuts a text after 1,500 to 3,000 characters: at a blank line, else a newline, else a space.

    is_end: false where more text follows; the rest that is too short to be cut is then left out.
    """
    start = 0
    while stop := _next_cut(text, start, is_end):
        if text[start:stop].strip():
            yield text[start:stop].strip("\n")
        start = stop


def _next_cut(text: str, start: int, is_end: bool) -> int:
    """Where the piece that begins at start ends; 0 where its end is not in the text."""
    low, high = start + PIECE, start + 2 * PIECE
    if start >= len(text) or (not is_end and high > len(text)):
        return 0
    ends = (text.find(mark, low, high) + len(mark) for mark in ("\n\n", "\n", " "))
    return next((end for end in ends if end > low), high)


def read_txt(file: Path, column: str, position: Position | None) -> Iterator[Chunk]:
    """Pieces of a text; a position is what `tell()` returns."""
    (offset,), size = position or (0,), max(CHUNK, 2 * PIECE)
    with file.open(encoding="utf-8") as stream:
        while True:
            stream.seek(offset)
            text = stream.read(size)
            is_end = len(text) < size
            if found := list(pieces(text if offset else text.removeprefix("\ufeff"), is_end)):
                yield (offset,), [(str(file), {column: piece}) for piece in found]
            if is_end:
                return
            stop = 0
            while end := _next_cut(text, stop, is_end=False):
                stop = end
            stream.seek(offset)  # only reading up to the last whole piece gives its end in bytes
            stream.read(stop)
            offset = stream.tell()


def read_jsonl(file: Path, column: str, position: Position | None) -> Iterator[Chunk]:
    """Rows; a position is an offset in bytes and the number of lines before it."""
    offset, number = position or (0, 0)
    with file.open("rb") as stream:
        stream.seek(offset)
        while lines := stream.readlines(CHUNK):
            rows = [
                (f"{file}, line {n}", _parsed(line.decode("utf-8-sig" if n == 1 else "utf-8")))
                for n, line in enumerate(lines, number + 1)
                if line.strip()
            ]
            yield (offset, number), rows
            offset, number = offset + sum(map(len, lines)), number + len(lines)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except JSON_ERRORS as error:
        return error


def read_parquet(file: Path, column: str | None, position: Position | None) -> Iterator[Chunk]:
    """Rows, of one column where it exists; a position is a row group and a row in it."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        table = pq.ParquetFile(file)
    except ArrowInvalid as error:
        raise ConfigError(f"data.path: {file} is not a Parquet file ({error}).") from error
    first, begin = position or (0, 0)
    columns = [column] if column in table.schema_arrow.names else None
    groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
    for group in range(first, len(groups)):
        before = sum(one.num_rows for one in groups[:group])
        size = max(1, CHUNK * groups[group].num_rows // max(1, groups[group].total_byte_size))
        row = 0
        for batch in table.iter_batches(size, row_groups=[group], columns=columns):
            if row >= (begin if group == first else 0):
                rows = enumerate(batch.to_pylist(), before + row + 1)
                yield (group, row), [(f"{file}, row {n}", found) for n, found in rows]
            row += len(batch)


def read_csv(file: Path) -> Iterator[Located]:
    """Rows of a table whose first line names the columns; .tsv has tabs and no quotes."""
    is_tsv = file.suffix == ".tsv"
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, **options)
        try:
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or None in row.values():
                    count = len(reader.fieldnames or [])
                    yield where, ValueError(f"not {count} columns, as the first line has")
                else:
                    yield where, row
        except csv.Error as error:
            raise ConfigError(f"data.path: {file}, line {reader.line_num}: {error}.") from error


def batch_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, each of CHUNK characters or a little more."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# Readers of documents, by suffix.
READERS: dict[str, Callable[[Path, str, Position | None], Iterator[Chunk]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
