"""Questions about Python's standard library, answered by its docstrings: nothing to download.

About 5,000 conversations with 6,000 distinct answers. They differ between Python versions, so the
version is part of the fingerprint.
"""

import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from lightning_distill.data.hashes import sha256
from lightning_distill.data.sources.base import Conversation, Message
from lightning_distill.data.sources.python_docs import modules
from lightning_distill.errors import ConfigError

VERSION = 1  # raise it when this file starts to give other conversations
MIN_ANSWER, MAX_ANSWER = 20, 200  # characters of an answer
QUESTIONS = (
    "What does {name} do?",
    "What is {name}?",
    "Explain {name}.",
    "Tell me about {name}.",
)
SYSTEM = "You explain Python's standard library in a sentence or two."

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class DocumentedName:
    """A module, class or function, and the first paragraph of its docstring."""

    name: str
    answer: str
    signature: str | None  # of a function


class PythonChat:
    """A row is a conversation of one or two turns, one in five with a system message.

    A second turn asks for a function's signature, or about the next name of the same module.
    """

    def fingerprint(self) -> str:
        return f"python_chat {VERSION}, {sys.implementation.name} {sys.version}"

    def read(self, parse: Callable[[Conversation], Parsed]) -> Iterator[Parsed]:
        for messages in self._conversations:
            try:
                yield parse(Conversation(messages))
            except ConfigError as error:  # a pretrained model's chat template may refuse it
                raise ConfigError(
                    f"{str(error).rstrip('.')}, in a conversation of data=python_chat, "
                    f"{messages[-2]['content']!r}."
                ) from error

    @cached_property
    def _conversations(self) -> list[list[Message]]:
        return list(conversations(Path(sysconfig.get_paths()["stdlib"])))


def conversations(library: Path) -> Iterator[list[Message]]:
    """Conversations in the order of the modules; a hash of its first name decides its form."""
    answered: set[str] = set()
    for path, tree in modules(library):
        names = [part for part in path.with_suffix("").parts if part != "__init__"]
        if not names:
            continue
        documented = _documented(tree, ".".join(names))
        while (entry := _next(documented, answered)) is not None:
            number = int(sha256(entry.name)[:8], 16)
            system, follow_up, question = number % 5 == 0, number // 5 % 6, number // 30
            messages: list[Message] = [{"role": "system", "content": SYSTEM}] if system else []
            messages += _turn(
                QUESTIONS[question % len(QUESTIONS)].format(name=entry.name), entry.answer
            )
            short = entry.name.rpartition(".")[2]
            if follow_up < 2 and entry.signature:
                messages += _turn("What is its signature?", short + entry.signature)
            elif follow_up == 2 and (other := _next(documented, answered)) is not None:
                messages += _turn(f"And {other.name}?", other.answer)
            yield messages


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _next(entries: Iterator[DocumentedName], answered: set[str]) -> DocumentedName | None:
    """The next one whose answer is new, so that no answer is in two splits."""
    for entry in entries:
        if MIN_ANSWER <= len(entry.answer) <= MAX_ANSWER and entry.answer not in answered:
            answered.add(entry.answer)
            return entry
    return None


def _documented(node: ast.AST, name: str) -> Iterator[DocumentedName]:
    """The public names of a module that have a docstring, in the module's order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        function = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
        if text:
            signature = f"({ast.unparse(function.args)})" if function else None
            yield DocumentedName(name, " ".join(text.split("\n\n")[0].split()), signature)
        for child in [] if function else node.body:
            child_name = getattr(child, "name", "_")
            if not child_name.startswith("_") or child_name.endswith("__"):
                yield from _documented(child, f"{name}.{child_name}")
