"""Questions about Python's standard library, answered by its docstrings: nothing to download.

About 5,000 conversations over 6,000 answers, each given once. It differs a little between Python
versions, so the version is part of its fingerprint.
"""

import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from lightning_distill.data.chat_template import Message
from lightning_distill.data.sources.python_docs import modules
from lightning_distill.data.splits import sha256
from lightning_distill.errors import ConfigError

EDITION = 1  # raise it when this file starts to give other conversations
SHORTEST, LONGEST = 20, 200  # characters of an answer
QUESTIONS = (
    "What does {name} do?",
    "What is {name}?",
    "Explain {name}.",
    "Tell me about {name}.",
)
SYSTEM = "You explain Python's standard library in a sentence or two."

Read = TypeVar("Read")


@dataclass(frozen=True)
class Thing:
    """A module, class or function, and the first paragraph of its docstring."""

    name: str
    answer: str
    signature: str | None  # of a function


class PythonChat:
    """One or two turns a conversation, one in five with a system message.

    A second turn asks a function's signature, or about the next thing of the same module.
    """

    def fingerprint(self) -> str:
        return f"python_chat {EDITION}, {sys.implementation.name} {sys.version}"

    def read(self, one: Callable[[list[Message]], Read]) -> Iterator[Read]:
        for messages in self._all:
            try:
                yield one(messages)
            except ConfigError as error:  # by the chat template of a pretrained model
                said = f"{str(error).rstrip('.')}, in a conversation of data=python_chat"
                raise ConfigError(f"{said}, {messages[-2]['content']!r}.") from error

    @cached_property
    def _all(self) -> list[list[Message]]:
        return list(conversations(Path(sysconfig.get_paths()["stdlib"])))


def conversations(library: Path) -> Iterator[list[Message]]:
    """By module; what each looks like depends on a hash of its first name alone."""
    answered: set[str] = set()
    for place, tree in modules(library):
        names = [part for part in place.with_suffix("").parts if part != "__init__"]
        if not names:
            continue
        found = _things(tree, ".".join(names))
        while (thing := _next(found, answered)) is not None:
            dice = int(sha256(thing.name)[:8], 16)
            system, follow_up, question = dice % 5 == 0, dice // 5 % 6, dice // 30
            said: list[Message] = [{"role": "system", "content": SYSTEM}] if system else []
            said += _turn(
                QUESTIONS[question % len(QUESTIONS)].format(name=thing.name), thing.answer
            )
            short = thing.name.rpartition(".")[2]
            if follow_up < 2 and thing.signature:
                said += _turn("What is its signature?", short + thing.signature)
            elif follow_up == 2 and (other := _next(found, answered)) is not None:
                said += _turn(f"And {other.name}?", other.answer)
            yield said


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _next(things: Iterator[Thing], answered: set[str]) -> Thing | None:
    """The next one with an answer that was not given yet, so that no split knows another's."""
    for thing in things:
        if SHORTEST <= len(thing.answer) <= LONGEST and thing.answer not in answered:
            answered.add(thing.answer)
            return thing
    return None


def _things(node: ast.AST, name: str) -> Iterator[Thing]:
    """What is public in a module, in its order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        function = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
        if text:
            signature = f"({ast.unparse(function.args)})" if function else None
            yield Thing(name, " ".join(text.split("\n\n")[0].split()), signature)
        for child in [] if function else node.body:
            own = getattr(child, "name", "_")
            if not own.startswith("_") or own.endswith("__"):
                yield from _things(child, f"{name}.{own}")
