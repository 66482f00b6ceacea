"""What ends a command, and the sentences that say why."""

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A mistake that the user can mend. The message names the key, what was found and what to do.

    It ends the program with exit code 2 and no traceback.
    """


class Refused(BaseException):
    """Takes an explained error past Hydra, which would print all overrides in front of it."""


class Stopped(BaseException):
    """A signal has ended a run that can go on. Neither Hydra nor Lightning makes more of it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


def unknown_name(key: str, value: Any, names: Iterable[str]) -> ConfigError:
    """For a value that is none of a few names."""
    return ConfigError(f"{key}={value} does not exist.{_did_you_mean(str(value), list(names))}")


def _did_you_mean(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, 1, 0.25)
    return (f" Did you mean {near[0]}?" if near else "") + f" There is: {', '.join(sorted(names))}."


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
