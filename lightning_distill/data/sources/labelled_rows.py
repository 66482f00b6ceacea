"""Your own texts with labels, in two columns of a row."""

from collections.abc import Iterator

from lightning_distill.data.sources.rows import Row, Rows, text_of
from lightning_distill.errors import ConfigError


class LabelledRows:
    """Texts and labels from two columns of the files that `Rows` reads."""

    def __init__(self, path: str, column: str, label_column: str, skip_bad_rows: bool) -> None:
        self.column, self.label_column = column, label_column
        columns = {"data.column": column, "data.label_column": label_column}
        self.rows = Rows(path, columns, skip_bad_rows)
        features = getattr(self.rows.saved, "features", None) or {}
        # A `datasets` data set may hold numbers, and their names apart.
        self.names: list[str] | None = getattr(features.get(label_column), "names", None)

    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint()} {self.names}"

    def examples(self) -> Iterator[tuple[str, str]]:
        yield from self.rows.read(lambda row: (text_of(row, self.column), self._label(row)))

    def _label(self, row: Row) -> str:
        label = row[self.label_column]
        if self.names is not None and isinstance(label, int) and 0 <= label < len(self.names):
            return self.names[label]
        if not isinstance(label, str | int | float):
            raise ConfigError(f"{self.label_column} is {label!r}, not a string or a number")
        if not (name := str(label).strip()):
            raise ConfigError(f"{self.label_column} is empty")
        return name
