"""Values that the shell's completion offers: `stage=<TAB>`, `loss.fused=<TAB>`."""

from functools import wraps
from typing import Any

from hydra.plugins.completion_plugin import CompletionPlugin

from lightning_distill.config.schema import SCHEMA
from lightning_distill.config.stage_lookup import stages_of_user
from lightning_distill.stages import STAGES


def offer_values() -> None:
    """Adds the values that the schema knows to Hydra's, which are groups and present values."""
    query = CompletionPlugin._query

    @wraps(query)
    def with_values(self: CompletionPlugin, config_name: str | None, line: str) -> list[str]:
        word = "" if line.endswith(" ") else line.rpartition(" ")[2]
        return sorted({*query(self, config_name, line), *values_for(word)})

    CompletionPlugin._query = with_values  # type: ignore[method-assign]


def values_for(word: str) -> list[str]:
    """`loss.fused=false` and `loss.fused=true` for `loss.fused=`; after a comma, for the last."""
    key, equals, typed = word.partition("=")
    before, comma, last = typed.rpartition(",")
    prefix = f"{key}={before}{comma}"
    return [f"{prefix}{value}" for value in _values(key) if equals and value.startswith(last)]


def _values(key: str) -> list[str]:
    if key == "stage":
        return [*STAGES, *stages_of_user()]
    declared: Any = SCHEMA.get(key.lstrip("+"))
    if declared is None:
        return []
    choices = ("true", "false") if declared.type == "switch" else declared.choices
    return [*map(str, choices), *(["null"] if choices and declared.nullable else [])]
