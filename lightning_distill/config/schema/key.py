"""The declaration of one config key, and the check of a value against it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_distill.errors import unknown_name

LARGEST_SEED = 2**32 - 1  # accepted by torch, NumPy and Lightning alike
NAMES = {
    "integer": "integer",
    "number": "number",
    "schedule": "number",
    "text": "text",
    "texts": "text, or a list of texts",
    "switch": "true or false",
    "list": "list",
    "node": "a group of keys",
    "value": "a single value",
    "any": "",
}

Type = Literal[
    "integer",
    "number",
    "schedule",
    "text",
    "texts",
    "switch",
    "list",
    "node",
    "value",
    "any",
]


@dataclass(frozen=True)
class Key:
    """What a config key may be, and what it means.

    type: `schedule` is a number or {shape, start, end, steps}, and `any` is several types: the
        class that takes such a value checks it. `value` is any scalar, `node` holds other keys.
    meaning: one line, shown by --help.
    minimum, maximum: bounds that are allowed; above, below: bounds that are not.
    choices: all allowed values.
    nullable: whether null has a meaning.
    """

    type: Type
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str | int, ...] = ()
    nullable: bool = False

    @property
    def is_checked(self) -> bool:
        return self.type not in ("any", "schedule")

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """What is wrong with a value of the key: nothing, or one line."""
        if not self.is_checked or (value is None and self.nullable):
            return
        if self.choices:
            if not isinstance(value, str | int) or value not in self.choices:
                yield self._not_a_choice(key, value)
        elif self.type in ("text", "texts"):
            is_list = self.type == "texts" and isinstance(value, list)
            for one in value if is_list else [value]:
                yield from _problems_of_text(key, one)
            if value == []:
                yield f"{key}=[] names nothing"
        elif self.type in ("integer", "number"):
            if not self.contains(value):
                yield f"{key}={value} must be {self._number(value)}".rstrip()
        elif not _has_type(self.type, value):
            yield f"{key}={value} must be {self._requirement(key, value)}"

    def contains(self, value: Any) -> bool:
        """Whether it is a number of the right kind, within the bounds."""
        if not is_number(value) or (self.type == "integer" and not isinstance(value, int)):
            return False
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.type != "integer" or value <= LARGEST_SEED)
        )

    def range(self) -> str:
        """The bounds in words: `above 0`, `from 0 to below 1`, `of at least 1`."""
        low = "" if self.minimum is None else f"from {self.minimum:.7g}"
        low = low if self.above is None else f"above {self.above:g}"
        high = "" if self.maximum is None else f"to {self.maximum:.8g}"
        high = high if self.below is None else f"to below {self.below:g}"
        return " ".join(part for part in (low, high) if part)

    def type_and_range(self) -> str:
        """For --help: `integer from 1, or null`."""
        if self.choices:
            words = "one of " + ", ".join(map(str, self.choices))
        else:
            words = " ".join(part for part in (NAMES[self.type], self.range()) if part)
        words += ", or a schedule" if self.type == "schedule" else ""
        return words + (", or null" if words and self.nullable else "")

    def _not_a_choice(self, key: str, value: Any) -> str:
        if self.type == "integer":
            *first, last = map(str, self.choices)
            return f"{key}={value} must be {', '.join(first)} or {last}"
        return str(unknown_name(key, value, map(str, self.choices))).rstrip(".")

    def _number(self, value: Any) -> str:
        if self.type == "number":
            return f"a number {self.range()}"
        largest = self.maximum or LARGEST_SEED
        if is_number(value) and value > largest:
            return f"a whole number of at most {largest}"
        return f"a whole number of at least {self.minimum}"

    def _requirement(self, key: str, value: Any) -> str:
        if self.type == "node":
            return f"left to its own keys, as in {key}.<key>=<value>"
        if self.type == "list":
            return f"a list, as in {key}=[{value}]"
        return NAMES[self.type]


def _has_type(name: str, value: Any) -> bool:
    if name == "switch":
        return isinstance(value, bool)
    if name == "node":
        return isinstance(value, Mapping)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if name == "list":
        return is_list
    return not is_list and not isinstance(value, Mapping)


def _problems_of_text(key: str, value: Any) -> Iterator[str]:
    if value == "":
        yield f"{key}={value} is empty"
    elif not isinstance(value, str):
        quotes = f", in quotes where it is a number: {key}=\"'{value}'\""
        yield f"{key}={value} must be text" + (quotes if is_number(value) else "")


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are not."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
