"""Readers of files in chunks, from any position.

A reader yields chunks: the position where the chunk begins, from which reading can start again, and
its rows, each with its place in the file for error messages. A row that cannot be read is the error
itself. No file is held in memory, except a .json array.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning_distill.config.input_files import format_of
from lightning_distill.data.sources.opening import open_utf8
from lightning_distill.errors import ConfigError

CHUNK = 2**18  # characters or bytes, about; a document is never cut by it
PIECE = 1500  # characters: a long text is cut, because splits are made of documents

# What json raises for a line: a syntax error, too long a number, or too deep nesting.
JSON_ERRORS = (ValueError, RecursionError)
DELIMITERS = (",", ";", "\t")  # of .csv; spreadsheets write `;` where the comma is for decimals

Position = tuple[int, ...]
Located = tuple[str, Any]  # "file, line 3", and the row
TableRow = dict[str, Any]
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
    """Pieces of a text; a position is the offset in bytes of a line, and a number of characters
    behind it."""
    offset, used = position or (0, 0)
    begin, rest = (offset, used), ""  # of what is read and not cut yet
    with open_utf8(file, offset) as stream:
        while lines := b"".join(stream.readlines(CHUNK)):
            new = lines.decode().replace("\r\n", "\n").replace("\r", "\n")
            dropped = min(used, len(new))
            used -= dropped
            text, stop = rest + new[dropped:], 0
            while end := _next_cut(text, stop, is_end=False):
                stop = end
            if texts := list(pieces(text[:stop])):
                yield begin, [(str(file), {column: piece}) for piece in texts]
            is_in_new = stop >= len(rest)
            begin = (
                (offset, dropped + stop - len(rest)) if is_in_new else (begin[0], begin[1] + stop)
            )
            rest, offset = text[stop:], offset + len(lines)
        if texts := list(pieces(rest)):
            yield begin, [(str(file), {column: piece}) for piece in texts]


def read_jsonl(file: Path, column: str, position: Position | None) -> Iterator[Chunk]:
    """Rows; a position is an offset in bytes and the number of lines before it."""
    offset, number = position or (0, 0)
    with open_utf8(file, offset) as stream:
        while lines := stream.readlines(CHUNK):
            rows = [
                (f"{file}, line {n}", _parsed(line))
                for n, line in enumerate(lines, number + 1)
                if line.strip()
            ]
            yield (offset, number), rows
            offset, number = offset + sum(map(len, lines)), number + len(lines)


def read_json(file: Path, column: str, position: Position | None) -> Iterator[Chunk]:
    """Rows of an array, of the one array in an object, or of lines as in .jsonl."""
    with open_utf8(file) as stream:
        first = next((line for line in stream if line.strip()), b"")
        content = None if first.lstrip().startswith(b"[") else _parsed(first)
        if isinstance(content, dict):  # a whole row, unless it holds all rows and nothing follows
            if not _arrays(content) or any(line.strip() for line in stream):
                yield from read_jsonl(file, column, position)
                return
        else:
            content = _parsed(first + stream.read())
    arrays = [content] if isinstance(content, list) else _arrays(content)
    if len(arrays) != 1:
        reason = f": {content}" if isinstance(content, Exception) else ""
        raise ConfigError(
            f"data.path: {file} is neither an array of rows nor a row in each line{reason}."
        )
    (start,) = position or (0,)
    rows = ((f"{file}, row {n}", row) for n, row in enumerate(arrays[0], 1))
    yield from batched(islice(rows, start, None), start)


def _arrays(content: Any) -> list[list[Any]]:
    """The arrays of rows in an object, as in {"data": [{...}, {...}]}."""
    values = content.values() if isinstance(content, dict) else ()
    return [x for x in values if isinstance(x, list) and x and isinstance(x[0], dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
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
                yield (group, row), [(f"{file}, row {n}", without_nulls(r)) for n, r in rows]
            row += len(batch)


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table with a schema, without the keys that the schema alone gives its structs.

    Every struct of a column has the keys of all of them, with null for those that it lacks.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(x) for key, x in value.items() if x is not None}
    return [_without_nulls(x) for x in value] if isinstance(value, list) else value


def read_csv(file: Path, column: str, position: Position | None) -> Iterator[Chunk]:
    """Rows of a table whose first line names the columns; .tsv has tabs and no quotes.

    A position is a number of rows.
    """
    (start,) = position or (0,)
    with io.TextIOWrapper(open_utf8(file), encoding="utf-8", newline="") as lines:
        first = lines.readline()
        options: dict[str, Any] = {"delimiter": max(DELIMITERS, key=first.count)}
        if format_of(file) == ".tsv":
            options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        reader = csv.DictReader(chain([first], lines), **options)
        yield from batched(islice(_csv_rows(file, reader), start, None), start)


def _csv_rows(file: Path, reader: Any) -> Iterator[Located]:
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


def batched(rows: Iterator[Located], start: int) -> Iterator[Chunk]:
    """Chunks of 256 rows, whose position is the number of rows before them."""
    while batch := list(islice(rows, 256)):
        yield (start,), batch
        start += len(batch)


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


# By suffix. Rows of .txt are pieces of a text.
READERS: dict[str, Callable[[Path, str, Position | None], Iterator[Chunk]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".jsonlines": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
}
