"""A data set of the Hugging Face hub, or one that was saved on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_distill import ConfigError


class HuggingFace:
    """Documents from one column of a `datasets` data set.

    name: a name on the hub, or a folder written by `save_to_disk`. All its rows are used, and
    split anew, so that data sets without splits of their own behave like those with.
    """

    def __init__(
        self, name: str, subset: str | None = None, split: str = "train", column: str = "text"
    ) -> None:
        self.column = column
        self.rows = load(name, subset, split, "data.name")
        if column not in self.rows.column_names:
            there = ", ".join(self.rows.column_names)
            raise ConfigError(f"data.column={column}: {name} has no such column; it has: {there}.")

    def fingerprint(self) -> str:
        return f"huggingface {self.column} {self.rows._fingerprint}"

    def documents(self) -> Iterator[str]:
        for row in self.rows:
            if isinstance(row[self.column], str):
                yield row[self.column]


def load(name: str, subset: str | None, split: str, key: str) -> Any:
    """A data set saved on disk, a folder of plain files, or one of the hub.

    Raises ConfigError where it cannot be had; key: the setting that names it.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    try:
        if not Path(name).expanduser().is_dir():
            return load_dataset(name, subset, split=split)
        try:
            found = load_from_disk(str(Path(name).expanduser()))
        except FileNotFoundError:  # a folder of plain files
            return load_dataset(name, subset, split=split)
        return found if isinstance(found, Dataset) else found[split]
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigError(f"{key}={name} (split {split}): {reason}") from error
