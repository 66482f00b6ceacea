"""The exceptions that end a command, and helpers for their messages."""

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A mistake that the user can mend. The message names the key, its value and what to do.

    It ends the program with exit code 2 and no traceback.
    """


class Refused(BaseException):
    """An explained error. Not an Exception, since Hydra would print all overrides in front of it,
    and turns the exceptions of callbacks into warnings."""


class Stopped(BaseException):
    """A signal ended a run that can be resumed. Not an Exception, so that neither Hydra nor
    Lightning handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


def unknown_name(key: str, value: Any, names: Iterable[str]) -> ConfigError:
    """The error for a value that is not one of the names, with the nearest of them."""
    known = list(names)
    nearest = difflib.get_close_matches(str(value), known, 1, 0.25)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    listed = ", ".join(sorted(known))
    return ConfigError(f"{key}={value} does not exist.{hint} There is: {listed}.")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
