"""Files read some documents at a time, from any place on: none is held whole.

A reader yields chunks: the place where it begins, which later leads a reader back to it, and what
is in it, each item with where it is, for messages. A place is a tuple of numbers.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_distill.errors import ConfigError

CHUNK = 2**18  # characters or bytes, about; a document is never cut by it
PIECE = 1500  # characters: a long text is cut up, because the splits are made by document

# What json raises of a line: it is none, holds too long a number, or is nested too deeply.
UNPARSED = (ValueError, RecursionError)

Place = tuple[int, ...]
Chunk = tuple[Place, list[tuple[str, Any]]]


def pieces(text: str, whole: bool = True) -> Iterator[str]:
    """Cuts after 1,500 to 3,000 characters: at a blank line, else a line's end, else a space.

    whole: false where the text goes on; what is left over is then kept back.
    """
    start = 0
    while stop := _next_cut(text, start, whole):
        if text[start:stop].strip():
            yield text[start:stop].strip("\n")
        start = stop


def _next_cut(text: str, start: int, whole: bool) -> int:
    """Where the piece that begins at start ends; 0 where it is not all there."""
    low, high = start + PIECE, start + 2 * PIECE
    if start >= len(text) or (not whole and high > len(text)):
        return 0
    ends = (text.find(mark, low, high) + len(mark) for mark in ("\n\n", "\n", " "))
    return next((end for end in ends if end > low), high)


def txt_chunks(file: Path, column: str, place: Place | None) -> Iterator[Chunk]:
    """Pieces of a text; a place is what the open file told as its position."""
    (position,), size = place or (0,), max(CHUNK, 2 * PIECE)
    with file.open(encoding="utf-8") as stream:
        while True:
            stream.seek(position)
            text = stream.read(size)
            ended = len(text) < size
            if found := list(pieces(text, ended)):
                yield (position,), [(str(file), {column: piece}) for piece in found]
            if ended:
                return
            stop = 0
            while end := _next_cut(text, stop, whole=False):
                stop = end
            stream.seek(position)  # the place behind the last whole piece, which only reading tells
            stream.read(stop)
            position = stream.tell()


def jsonl_chunks(file: Path, column: str, place: Place | None) -> Iterator[Chunk]:
    """Rows, or what is wrong with them; a place is a byte and the number of the line before."""
    position, number = place or (0, 0)
    with file.open("rb") as stream:
        stream.seek(position)
        while lines := stream.readlines(CHUNK):
            rows = [
                (f"{file}, line {n}", _parsed(line.decode("utf-8")))
                for n, line in enumerate(lines, number + 1)
                if line.strip()
            ]
            yield (position, number), rows
            position, number = position + sum(map(len, lines)), number + len(lines)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except UNPARSED as error:
        return error


def parquet_chunks(file: Path, column: str, place: Place | None) -> Iterator[Chunk]:
    """Rows of one column, by row group; a place is a group and the number of a row in it."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        table = pq.ParquetFile(file)
    except ArrowInvalid as error:
        raise ConfigError(f"data.path: {file} is not a Parquet file ({error}).") from error
    first, begin = place or (0, 0)
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


def gathered(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of them, each of CHUNK characters or a little more."""
    found: list[str] = []
    size = 0
    for text in texts:
        found.append(text)
        size += len(text)
        if size >= CHUNK:
            yield found
            found, size = [], 0
    if found:
        yield found


CHUNKS: dict[str, Callable[[Path, str, Place | None], Iterator[Chunk]]] = {
    ".txt": txt_chunks,
    ".jsonl": jsonl_chunks,
    ".parquet": parquet_chunks,
}
