"""Your own pairs: a text in one language and its translation into another."""

from collections.abc import Iterator
from typing import Any

from lightning_distill.data.sources.base import Pair
from lightning_distill.data.sources.readers import TableRow
from lightning_distill.data.sources.row_files import Names, RowFiles
from lightning_distill.data.sources.skipped_rows import text_of
from lightning_distill.errors import ConfigError

LANGUAGES_COLUMN = "translation"  # of rows {"translation": {"en": ..., "de": ...}}


class Pairs:
    """A row is a Pair, from two columns of the files that `RowFiles` reads, or from one column of
    both languages.

    source_language, target_language: of rows {"translation": {"en": ..., "de": ...}}, as many data
    sets of the hub have them; the columns' names are then not used.
    Raises ConfigError where a row has no such column or language, or one side is empty.
    """

    def __init__(
        self,
        path: Names,
        source_column: str = "source",
        target_column: str = "target",
        source_language: str | None = None,
        target_language: str | None = None,
        skip_bad_rows: bool = False,
    ) -> None:
        self.languages = {
            "data.source_language": source_language,
            "data.target_language": target_language,
        }
        self.columns = {"data.source_column": source_column, "data.target_column": target_column}
        given = [name for name in self.languages.values() if name is not None]
        if len(given) == 1:
            raise ConfigError(
                f"data.source_language={source_language} and data.target_language="
                f"{target_language} go together: set both, or neither for rows with two columns."
            )
        for first, second in (self.languages.values(), self.columns.values()):
            if first is not None and first == second:
                raise ConfigError(f"data: source and target are the same, {first}.")
        self.table = RowFiles(path, {} if given else self.columns, skip_bad_rows)
        self._parse = self._from_languages if given else self._from_columns

    def fingerprint(self) -> str:
        return f"pairs {list(self.languages.values())} {self.table.fingerprint()}"

    def rows(self) -> Iterator[Pair]:
        return self.table.read(self._parse)

    def _from_columns(self, row: TableRow) -> Pair:
        source, target = (text_of(row, name).strip() for name in self.columns.values())
        return Pair(source, target, source)

    def _from_languages(self, row: TableRow) -> Pair:
        texts: Any = row.get(LANGUAGES_COLUMN) if isinstance(row, dict) else None
        if not isinstance(texts, dict):
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else ""
            raise ConfigError(
                f"no column {LANGUAGES_COLUMN} with a text for each language; it has: "
                f"{columns or 'nothing'}"
            )
        for setting, name in self.languages.items():
            if name not in texts:
                languages = ", ".join(map(str, texts)) or "nothing"
                raise ConfigError(f"no language {name} ({setting}={name}); it has: {languages}")
        source, target = (text_of(texts, str(name)).strip() for name in self.languages.values())
        return Pair(source, target, source)
