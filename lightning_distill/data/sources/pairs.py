"""Your own pairs: a text in one language and its translation into another."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_distill.data.sources.rows import Row, Rows, text_of
from lightning_distill.errors import ConfigError

FORMAT = "translation"  # the column of rows {"translation": {"en": ..., "de": ...}}


class Pair(NamedTuple):
    """key: pairs that share it are never in different splits."""

    source: str
    target: str
    key: str


class Pairs:
    """Pairs from two columns of the files that `Rows` reads, or from one column of both languages.

    source_language, target_language: of rows {"translation": {"en": ..., "de": ...}}, as many data
    sets of the hub have them; the columns' names then do not count.
    Raises ConfigError where a row has no such column or language, or one side is empty.
    """

    def __init__(
        self,
        path: str,
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
        self.rows = Rows(path, {} if given else self.columns, skip_bad_rows)
        self._one = self._of_languages if given else self._of_columns

    def fingerprint(self) -> str:
        return f"pairs {list(self.languages.values())} {self.rows.fingerprint()}"

    def pairs(self) -> Iterator[Pair]:
        return self.rows.read(self._one)

    def _of_columns(self, row: Row) -> Pair:
        source, target = (text_of(row, name).strip() for name in self.columns.values())
        return Pair(source, target, source)

    def _of_languages(self, row: Row) -> Pair:
        found: Any = row.get(FORMAT) if isinstance(row, dict) else None
        if not isinstance(found, dict):
            there = ", ".join(map(str, row)) if isinstance(row, dict) else "nothing"
            raise ConfigError(
                f"no column {FORMAT} with a text for each language; it has: {there or 'nothing'}"
            )
        for setting, name in self.languages.items():
            if name not in found:
                there = ", ".join(map(str, found)) or "nothing"
                raise ConfigError(f"no language {name} ({setting}={name}); it has: {there}")
        source, target = (text_of(found, str(name)).strip() for name in self.languages.values())
        return Pair(source, target, source)
