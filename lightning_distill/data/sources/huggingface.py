"""A data set of the Hugging Face hub, or one that was saved on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_distill.errors import ConfigError

ROWS = 128  # read at a time


class HuggingFace:
    """Documents from one column of a `datasets` data set.

    name: a name on the hub, or a folder written by `save_to_disk`. All its rows are used, and
    split anew, so that data sets without splits of their own behave like those with.
    streaming: read it as it is, neither downloaded nor converted ahead.
    """

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        split: str = "train",
        column: str = "text",
        streaming: bool = False,
    ) -> None:
        self.column = column
        self.what = name, subset, split
        self.rows = load(name, subset, split, "data.name", streaming)
        # Of a stream they may not be known before it is read.
        names = self.rows.column_names or list(next(iter(self.rows), {}))
        if column not in names:
            there = ", ".join(names)
            raise ConfigError(f"data.column={column}: {name} has no such column; it has: {there}.")

    def fingerprint(self) -> str:
        return f"huggingface {self.column} {self.rows._fingerprint}"

    def stamp(self) -> str:
        """The fingerprint, or of a stream what `datasets` knows of its files."""
        from datasets import load_dataset_builder

        if hasattr(self.rows, "_fingerprint"):
            return self.fingerprint()
        name, subset, split = self.what
        builder = load_dataset_builder(name, subset)
        return f"huggingface {self.column} {split} {builder.config_id} {builder.hash}"

    def documents(self) -> Iterator[str]:
        for row in self.rows:
            if isinstance(row[self.column], str):
                yield row[self.column]

    def chunks(self, place: Any) -> Iterator[tuple[Any, list[str]]]:
        """Some documents at a time, and the place where they begin; from such a place on. It is a
        row's number, or of a stream what `datasets` has for that."""
        rows = self.rows.select_columns([self.column])  # one of our own, which starts anew
        if not hasattr(rows, "load_state_dict"):
            (begin,) = place or (0,)
            for start in range(begin, len(rows), ROWS):
                yield (start,), self._texts(rows[start : start + ROWS])
            return
        if place:
            rows.load_state_dict(place)
        place = rows.state_dict()
        for found in rows.iter(ROWS):  # which, unlike iter(rows), leaves nothing to other workers
            yield place, self._texts(found)
            place = rows.state_dict()

    def _texts(self, rows: dict[str, list[Any]]) -> list[str]:
        return [text for text in rows[self.column] if isinstance(text, str)]


def load(name: str, subset: str | None, split: str, key: str, streaming: bool = False) -> Any:
    """A data set saved on disk, a folder of plain files, or one of the hub.

    streaming: of the last two, as one that is read while it is iterated over.
    Raises ConfigError where it cannot be had; key: the setting that names it.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    try:
        if not Path(name).expanduser().is_dir():
            return load_dataset(name, subset, split=split, streaming=streaming)
        try:
            found = load_from_disk(str(Path(name).expanduser()))
        except FileNotFoundError:  # a folder of plain files
            return load_dataset(name, subset, split=split, streaming=streaming)
        return found if isinstance(found, Dataset) else found[split]
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigError(f"{key}={name} (split {split}): {reason}") from error
