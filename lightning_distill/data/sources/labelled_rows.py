"""Your own texts with labels, in two columns."""

from collections.abc import Iterator

from lightning_distill.data.sources.readers import TableRow
from lightning_distill.data.sources.row_files import Names, RowFiles
from lightning_distill.data.sources.skipped_rows import text_of
from lightning_distill.errors import ConfigError


class LabelledRows:
    """A row is (text, label), from two columns of the files that `RowFiles` reads."""

    def __init__(self, path: Names, column: str, label_column: str, skip_bad_rows: bool) -> None:
        self.column, self.label_column = column, label_column
        columns = {"data.column": column, "data.label_column": label_column}
        self.table = RowFiles(path, columns, skip_bad_rows)
        features = getattr(self.table.dataset, "features", None) or {}
        # A `datasets` data set may hold indices, and their names apart.
        self.names: list[str] | None = getattr(features.get(label_column), "names", None)

    def fingerprint(self) -> str:
        return f"labels 2 {self.table.fingerprint()} {self.names}"

    def rows(self) -> Iterator[tuple[str, str]]:
        yield from self.table.read(lambda row: (text_of(row, self.column), self._label(row)))

    def _label(self, row: TableRow) -> str:
        label = row[self.label_column]
        if self.names is not None and isinstance(label, int) and 0 <= label < len(self.names):
            return self.names[label]
        if not isinstance(label, str | int | float) or label != label:  # NaN
            raise ConfigError(f"{self.label_column} is {label!r}, not a string or a number")
        if isinstance(label, float) and label.is_integer():  # as tables write 1 beside a gap
            label = int(label)
        if not (name := str(label).strip()):
            raise ConfigError(f"{self.label_column} is empty")
        return name
