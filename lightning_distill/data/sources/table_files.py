"""Rows with named columns, from a user's files: what all tasks but running text read."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lightning_distill.data.sources.huggingface import load_dataset_at
from lightning_distill.data.sources.readers import Located, read_csv, read_jsonl, read_parquet
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import hash_of

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
Parsed = TypeVar("Parsed")
TableRow = dict[str, Any]


class TableFiles:
    """Rows of a .jsonl, .parquet, .csv or .tsv file, of a folder of them, or of a `datasets` data
    set: a folder written by `save_to_disk`, or a name on the hub.

    columns: those that each row must have, {setting: column}: {"data.label_column": "label"}.
    skip_bad_rows: leave out rows that cannot be read, and log how many, instead of raising.
    """

    def __init__(self, path: str, columns: dict[str, str], skip_bad_rows: bool) -> None:
        self.columns, self.skip_bad_rows = columns, skip_bad_rows
        self.path = Path(path).expanduser()
        self.dataset: Any = None
        if not self.path.exists():
            if path.startswith((".", "/", "~")) or self.path.suffix in SUFFIXES:
                raise ConfigError(f"data.path={path} does not exist.")
            self.dataset = load_dataset_at(path, None, "train", "data.path")
        elif (self.path / "state.json").exists() or (self.path / "dataset_dict.json").exists():
            self.dataset = load_dataset_at(path, None, "train", "data.path")
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        self.files = [f for f in files if f.suffix in SUFFIXES and f.is_file()]
        if self.dataset is None and not self.files:
            raise ConfigError(f"data.path={path} holds no file that ends in {', '.join(SUFFIXES)}.")

    def fingerprint(self) -> str:
        if self.dataset is not None:
            return f"rows {self.columns} {self.dataset._fingerprint}"
        content = " ".join(f"{f.suffix}:{hash_of(f)}" for f in self.files)
        return f"rows {self.columns} {hashlib.sha256(content.encode()).hexdigest()}"

    def read(self, parse: Callable[[TableRow], Parsed]) -> Iterator[Parsed]:
        """What `parse` returns for each row.

        parse: raises ConfigError with a short reason for a row that it cannot use.
        Raises ConfigError for the first bad row, with its place, unless bad rows are skipped.
        """
        bad, first, good = 0, "", 0
        for where, row in self._rows():
            try:
                if isinstance(row, Exception):
                    raise ConfigError(str(row))
                self._check_columns(row)
                parsed = parse(row)
            except ConfigError as error:
                message = f"{where}: {str(error).rstrip('.')}"
                if not self.skip_bad_rows:
                    raise ConfigError(
                        f"{message}. data.skip_bad_rows=true leaves such rows out."
                    ) from error
                bad, first = bad + 1, first or message
                continue
            good += 1
            yield parsed
        if bad:
            log.warning("skipped %d of %d rows; the first: %s", bad, bad + good, first)
        if not good:
            raise ConfigError(f"data.path={self.path} has no row{' that can be read' * bool(bad)}.")

    def _check_columns(self, row: Any) -> None:
        present = list(row) if isinstance(row, dict) else []
        for setting, name in self.columns.items():
            if name not in present:
                columns = ", ".join(map(str, present)) or "nothing"
                raise ConfigError(f"no column {name} ({setting}={name}); it has: {columns}")

    def _rows(self) -> Iterator[Located]:
        if self.dataset is not None:
            for number, row in enumerate(self.dataset, 1):
                yield f"{self.path}, row {number}", row
            return
        for file in self.files:
            try:
                yield from _read(file)
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.path: {file} is not UTF-8 text ({error}).") from error


def _read(file: Path) -> Iterator[Located]:
    if file.suffix in (".csv", ".tsv"):
        yield from read_csv(file)
        return
    chunks = (
        read_parquet(file, None, None) if file.suffix == ".parquet" else read_jsonl(file, "", None)
    )
    for _, rows in chunks:
        yield from rows


def text_of(row: TableRow, column: str) -> str:
    """A row's text. Raises ConfigError where it is no text, or blank."""
    text = row[column]
    if not isinstance(text, str):
        raise ConfigError(f"{column} is {type(text).__name__}, not text")
    if not text.strip():
        raise ConfigError(f"{column} is empty")
    return text
