"""Rows with named columns, from files of the user's: what all tasks but plain text read."""

import csv
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lightning_distill.data.sources.huggingface import load
from lightning_distill.data.sources.readers import UNPARSED
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import hash_of

log = logging.getLogger(__name__)

Read = TypeVar("Read")
Row = dict[str, Any]

csv.field_size_limit(2**31 - 1)  # of characters in a column, which is 131,072 without it


class Rows:
    """Rows of a .jsonl, .parquet, .csv or .tsv file, of a folder of them, or of a `datasets` data
    set: a folder that `save_to_disk` wrote, or a name on the hub.

    columns: those that each row must have, by the setting that names them:
    {"data.label_column": "label"}.
    skip_bad_rows: leave out what cannot be read, count it and say so, instead of refusing it.
    """

    def __init__(self, path: str, columns: dict[str, str], skip_bad_rows: bool) -> None:
        self.columns, self.skip_bad_rows = columns, skip_bad_rows
        self.path = Path(path).expanduser()
        self.saved: Any = None
        if not self.path.exists():
            if path.startswith((".", "/", "~")) or self.path.suffix in READERS:
                raise ConfigError(f"data.path={path} does not exist.")
            self.saved = load(path, None, "train", "data.path")
        elif (self.path / "state.json").exists() or (self.path / "dataset_dict.json").exists():
            self.saved = load(path, None, "train", "data.path")
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        self.files = [f for f in files if f.suffix in READERS and f.is_file()]
        if self.saved is None and not self.files:
            raise ConfigError(f"data.path={path} holds no file that ends in {', '.join(READERS)}.")

    def fingerprint(self) -> str:
        """Changes when the rows do."""
        if self.saved is not None:
            return f"rows {self.columns} {self.saved._fingerprint}"
        content = " ".join(f"{f.suffix}:{hash_of(f)}" for f in self.files)
        return f"rows {self.columns} {hashlib.sha256(content.encode()).hexdigest()}"

    def read(self, one: Callable[[Row], Read]) -> Iterator[Read]:
        """What `one` makes of each row.

        It raises ConfigError, with what is wrong in a few words, where it can make nothing of it;
        the row is named here. Raises ConfigError at the first bad row, unless such are skipped.
        """
        bad, first, good = 0, "", 0
        for where, row in self._rows():
            try:
                if isinstance(row, Exception):
                    raise ConfigError(str(row))
                self._check(row)
                found = one(row)
            except ConfigError as error:
                message = f"{where}: {str(error).rstrip('.')}"
                if not self.skip_bad_rows:
                    raise ConfigError(
                        f"{message}. data.skip_bad_rows=true leaves such rows out."
                    ) from error
                bad, first = bad + 1, first or message
                continue
            good += 1
            yield found
        if bad:
            log.warning("%d of %d rows are left out; the first: %s", bad, bad + good, first)
        if not good:
            raise ConfigError(f"data.path={self.path} has no row{' that can be read' * bool(bad)}.")

    def _check(self, row: Any) -> None:
        there = list(row) if isinstance(row, dict) else []
        for setting, name in self.columns.items():
            if name not in there:
                has = ", ".join(map(str, there)) or "nothing"
                raise ConfigError(f"no column {name} ({setting}={name}); it has: {has}")

    def _rows(self) -> Iterator[tuple[str, Row | Exception]]:
        if self.saved is not None:
            for number, row in enumerate(self.saved, 1):
                yield f"{self.path}, row {number}", row
            return
        for file in self.files:
            try:
                yield from READERS[file.suffix](file, None)
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path: {file} is not UTF-8 text ({error}).") from error


def text_of(row: Row, column: str) -> str:
    """A row's text. Raises ConfigError where it is none, or empty."""
    text = row[column]
    if not isinstance(text, str):
        raise ConfigError(f"{column} is {type(text).__name__}, not text")
    if not text.strip():
        raise ConfigError(f"{column} is empty")
    return text


def _jsonl(file: Path, column: str | None) -> Iterator[tuple[str, Row | Exception]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                yield where, json.loads(line)
            except UNPARSED as error:
                yield where, error


def _parquet(file: Path, column: str | None) -> Iterator[tuple[str, Row | Exception]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        table = pq.ParquetFile(file)
    except ArrowInvalid as error:
        raise ConfigError(f"data.path: {file} is not a Parquet file ({error}).") from error
    number, there = 0, table.schema_arrow.names
    for batch in table.iter_batches(columns=[column] if column in there else None):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}, row {number}", row


def _csv(file: Path, column: str | None) -> Iterator[tuple[str, Row | Exception]]:
    """With the columns' names in the first line; a .tsv has tabs between them, and no quotes."""
    tabs = file.suffix == ".tsv"
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, **how)
        for row in _whole(reader, file):
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                count = len(reader.fieldnames or [])
                yield where, ValueError(f"not {count} columns, as the first line has")
            else:
                yield where, row


def _whole(reader: Any, file: Path) -> Iterator[Row]:
    try:
        yield from reader
    except csv.Error as error:
        raise ConfigError(f"data.path: {file}, line {reader.line_num}: {error}.") from error


# Where each row is, and the row, or what is wrong with it. Of Parquet one column can be read alone.
READERS: dict[str, Callable[[Path, str | None], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
}
