"""Paragraphs of the standard library's docstrings, and the package that each is from.

About 3,300 short texts and 16 labels, nothing to download. A package's name is blanked in its
texts, since it would give the label away.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.data.sources.python_docs import docstrings
from lightning_distill.errors import ConfigError

VERSION = 1  # raise it when this file starts to give other texts
MIN_CHARACTERS = 60  # characters of a paragraph
BLANK = "…"

# Well documented packages and modules of every CPython since 3.10, and where they are.
TOPICS = {
    "asyncio": "asyncio",
    "configparser": "configparser.py",
    "decimal": "_pydecimal.py",
    "difflib": "difflib.py",
    "doctest": "doctest.py",
    "email": "email",
    "http": "http",
    "importlib": "importlib",
    "inspect": "inspect.py",
    "ipaddress": "ipaddress.py",
    "logging": "logging",
    "statistics": "statistics.py",
    "typing": "typing.py",
    "unittest": "unittest",
    "urllib": "urllib",
    "xml": "xml",
}


class PythonTopics:
    """A row is (paragraph, package). A paragraph of two packages is left out, as ambiguous."""

    def fingerprint(self) -> str:
        return f"python_topics {VERSION}, {sys.implementation.name} {sys.version}"

    def rows(self) -> Iterator[tuple[str, str]]:
        library = Path(sysconfig.get_paths()["stdlib"])
        topics_of: dict[str, set[str]] = {}
        for topic, path in TOPICS.items():
            for text in _paragraphs(library / path):
                topics_of.setdefault(blanked(topic, text), set()).add(topic)
        for text, topics in topics_of.items():
            if len(topics) == 1:
                yield text, min(topics)


def blanked(topic: str, text: str) -> str:
    """The text without the topic's name, also where it is part of another name."""
    return re.sub(re.escape(topic), BLANK, text, flags=re.IGNORECASE)


def _paragraphs(path: Path) -> Iterator[str]:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if not all(file.is_file() for file in files) or not files:
        raise ConfigError(
            f"data=python_topics needs the standard library's sources, and {path} is not there. "
            "Install the full Python, or bring rows: data=classification data.path=..."
        )
    for file in files:
        for text in docstrings(ast.parse(file.read_bytes())):
            for paragraph in text.split("\n\n"):
                if len(paragraph) >= MIN_CHARACTERS:
                    yield paragraph.strip("\n")
