"""Rows with named columns, from a user's files or a `datasets` data set: what all tasks read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from lightning_distill.config.input_files import (
    COMPRESSIONS,
    format_of,
    input_files,
    may_be_on_hub,
    missing_input,
)
from lightning_distill.data.sources.huggingface import is_saved_dataset, load_dataset_at
from lightning_distill.data.sources.opening import DAMAGE, unreadable
from lightning_distill.data.sources.readers import (
    READERS,
    Located,
    Position,
    TableRow,
    batched,
    without_nulls,
)
from lightning_distill.data.sources.skipped_rows import Parsed, SkippedRows
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import hash_of

TABLES = tuple(suffix for suffix in READERS if suffix != ".txt")
Names = str | Sequence[str]


class RowFiles:
    """Rows of files, or of a `datasets` data set.

    path: a file, a folder, a glob or a list of these; or a folder that `save_to_disk` wrote, or a
        name on the hub.
    columns: those that each row must have, {setting: column}: {"data.label_column": "label"}.
    skip_bad_rows: leave out rows that cannot be read, and log how many, instead of raising.
    formats: suffixes of the files that are read.
    Raises ConfigError where there is no such file.
    """

    def __init__(
        self,
        path: Names,
        columns: dict[str, str],
        skip_bad_rows: bool,
        formats: Sequence[str] = TABLES,
    ) -> None:
        self.path, self.columns, self.skip_bad_rows = path, columns, skip_bad_rows
        self.dataset: Any = None
        files = input_files(path)
        self.files = [file for file in files if format_of(file) in formats]
        on_hub = isinstance(path, str) and not files and may_be_on_hub(path)
        if isinstance(path, str) and (on_hub or is_saved_dataset(path)):
            self.dataset = load_dataset_at(path, None, "train", "data.path")
        elif missing := missing_input(path):
            raise ConfigError(f"data.path={missing} does not exist.")
        elif not self.files:
            also = f" (and {', '.join(COMPRESSIONS)} of these)"
            raise ConfigError(
                f"data.path={path} holds no file that ends in {', '.join(formats)}{also}."
            )
        elif not any(file.stat().st_size for file in self.files):
            raise ConfigError(f"data.path={path} is empty.")

    def fingerprint(self) -> str:
        if self.dataset is not None:
            return f"rows {self.columns} {self.dataset._fingerprint}"
        content = " ".join(f"{format_of(f)}:{hash_of(f)}" for f in self.files)
        return f"rows {self.columns} {hashlib.sha256(content.encode()).hexdigest()}"

    def quick_fingerprint(self) -> str:
        """Of the files' names, sizes and modification times."""
        files = [(f.name, f.stat()) for f in self.files]
        return f"rows {self.columns} {[(name, s.st_size, s.st_mtime_ns) for name, s in files]}"

    def read(self, parse: Callable[[TableRow], Parsed]) -> Iterator[Parsed]:
        """What `parse` returns for each row.

        parse: raises ConfigError with a short reason for a row that it cannot use.
        Raises ConfigError for the first bad row, with its place, unless bad rows are skipped.
        """
        good = 0
        for _, parsed in self.read_from(None, parse):
            good += len(parsed)
            yield from parsed
        if not good:
            skipped = " that can be read" * self.skip_bad_rows
            raise ConfigError(f"data.path={self.path} has no row{skipped}.")

    def read_from(
        self, position: Position | None, parse: Callable[[TableRow], Parsed]
    ) -> Iterator[tuple[Position, list[Parsed]]]:
        """(position, rows that begin there), from a position on; None for the start."""
        skipped = SkippedRows(self.skip_bad_rows)
        for here, rows in self._chunks(position):
            yield here, [*skipped.filter(rows, lambda row: parse(self._checked(row)))]
        skipped.report()

    def _checked(self, row: Any) -> TableRow:
        if isinstance(row, Exception):
            raise ConfigError(str(row))
        present = list(row) if isinstance(row, dict) else []
        for setting, name in self.columns.items():
            if name not in present:
                columns = ", ".join(map(str, present)) or "nothing"
                raise ConfigError(f"no column {name} ({setting}={name}); it has: {columns}")
        return row

    def _chunks(self, position: Position | None) -> Iterator[tuple[Position, Iterable[Located]]]:
        """A position is a file's index and its reader's position; of a data set, a row's index."""
        if self.dataset is not None:
            (begin,) = position or (0,)
            numbered = enumerate(islice(self.dataset, begin, None), begin + 1)
            located = ((f"{self.path}, row {n}", without_nulls(row)) for n, row in numbered)
            yield from batched(located, begin)
            return
        first, *inner = position or (0,)
        column = next(iter(self.columns.values())) if len(self.columns) == 1 else ""
        for number in range(first, len(self.files)):
            file = self.files[number]
            start = tuple(inner) if number == first and inner else None
            try:
                for here, rows in READERS[format_of(file)](file, column, start):
                    yield (number, *here), rows
            except (UnicodeDecodeError, *DAMAGE, OSError) as error:
                raise unreadable(file, error) from error
