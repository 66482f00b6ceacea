"""A data set of the Hugging Face hub, or one saved on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_distill.data.sources.skipped_rows import SkippedRows, text_of
from lightning_distill.errors import ConfigError

ROWS = 128  # read at a time


class HuggingFace:
    """A row is a document: the text in one column of a `datasets` data set.

    name: on the hub, or a folder written by `save_to_disk`.
    split: the one that is used; it is split anew, since many data sets have no other.
    skip_bad_rows: leave out rows whose column is no text, and log how many, instead of raising.
    streaming: read the data set without downloading or converting it first.
    """

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        split: str = "train",
        column: str = "text",
        skip_bad_rows: bool = False,
        streaming: bool = False,
    ) -> None:
        self.name, self.subset, self.split, self.column = name, subset, split, column
        self.skip_bad_rows = skip_bad_rows
        self.dataset = load_dataset_at(name, subset, split, "data.name", streaming)
        # A stream may not know its columns before it is read.
        columns = self.dataset.column_names or list(next(iter(self.dataset), {}))
        if column not in columns:
            raise ConfigError(
                f"data.column={column}: {name} has no such column; it has: {', '.join(columns)}."
            )

    def fingerprint(self) -> str:
        return f"huggingface {self.column} {self.dataset._fingerprint}"

    def quick_fingerprint(self) -> str:
        """The fingerprint; of a stream, what `datasets` knows of its files."""
        from datasets import load_dataset_builder

        if hasattr(self.dataset, "_fingerprint"):
            return self.fingerprint()
        builder = load_dataset_builder(self.name, self.subset)
        return f"huggingface {self.column} {self.split} {builder.config_id} {builder.hash}"

    def rows(self) -> Iterator[str]:
        for _, texts in self.read_from(None):
            yield from texts

    def read_from(self, position: Any) -> Iterator[tuple[Any, list[str]]]:
        """(position, documents that begin there); a position is a row's index, or a stream's
        `state_dict()`."""
        skipped = SkippedRows(self.skip_bad_rows)
        number = position[0] if isinstance(position, list | tuple) else 0
        for here, values in self._batches(position):
            places = (f"{self.name}, row {n}" for n in range(number + 1, number + len(values) + 1))
            number += len(values)
            yield here, [*skipped.filter(zip(places, values, strict=True), self._text)]
        skipped.report()

    def _text(self, value: Any) -> str:
        return text_of({self.column: value}, self.column, may_be_blank=True)

    def _batches(self, position: Any) -> Iterator[tuple[Any, list[Any]]]:
        """(position, the column's values that begin there)."""
        rows = self.dataset.select_columns([self.column])  # a new object, which starts at 0
        if not hasattr(rows, "load_state_dict"):
            (begin,) = position or (0,)
            for start in range(begin, len(rows), ROWS):
                yield (start,), rows[start : start + ROWS][self.column]
            return
        if position:
            rows.load_state_dict(position)
        position = rows.state_dict()
        for batch in rows.iter(ROWS):  # unlike iter(rows), it does not shard over loader workers
            yield position, batch[self.column]
            position = rows.state_dict()


def is_saved_dataset(name: str) -> bool:
    """Whether it is a folder that `save_to_disk` wrote."""
    folder = Path(name).expanduser()
    return any((folder / file).exists() for file in ("state.json", "dataset_dict.json"))


def load_dataset_at(
    name: str, subset: str | None, split: str, key: str, streaming: bool = False
) -> Any:
    """A data set saved on disk, in a folder of plain files, or on the hub.

    streaming: load the last two as an iterable that reads on demand.
    Raises ConfigError where it cannot be loaded. key: the setting that names it.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    try:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return load_dataset(name, subset, split=split, streaming=streaming)
        try:
            dataset = load_from_disk(str(folder))
        except FileNotFoundError:  # a folder of plain files
            return load_dataset(str(folder), subset, split=split, streaming=streaming)
        return dataset if isinstance(dataset, Dataset) else dataset[split]
    except Exception as error:  # datasets raises errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigError(f"{key}={name} (split {split}): {reason}") from error
