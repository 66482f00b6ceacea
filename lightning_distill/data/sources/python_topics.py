"""Paragraphs of the standard library's docstrings, and the package that each is of.

About 3,300 short texts and 16 labels, nothing to download. A package's own name is taken out of
its texts, or there would be nothing to guess.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.data.sources.python_docs import docstrings
from lightning_distill.errors import ConfigError

EDITION = 1  # raise it when this file starts to give other texts
SHORTEST = 60  # characters of a paragraph
BLANK = "…"

# Packages and modules of every CPython since 3.10 that have much to say.
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
    """Texts and labels. Where two packages say the same, it is left out: nobody could tell."""

    def fingerprint(self) -> str:
        return f"python_topics {EDITION}, {sys.implementation.name} {sys.version}"

    def examples(self) -> Iterator[tuple[str, str]]:
        library = Path(sysconfig.get_paths()["stdlib"])
        found: dict[str, set[str]] = {}
        for topic, place in TOPICS.items():
            for text in _paragraphs(library / place):
                found.setdefault(without(topic, text), set()).add(topic)
        for text, topics in found.items():
            if len(topics) == 1:
                yield text, min(topics)


def without(topic: str, text: str) -> str:
    """The text with its topic's name blanked, also within other names."""
    return re.sub(re.escape(topic), BLANK, text, flags=re.IGNORECASE)


def _paragraphs(place: Path) -> Iterator[str]:
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    if not all(file.is_file() for file in files) or not files:
        raise ConfigError(
            f"data=python_topics needs the standard library's sources, and {place} is not there. "
            "Install the full Python, or bring rows: data=classification data.path=..."
        )
    for file in files:
        for text in docstrings(ast.parse(file.read_bytes())):
            for paragraph in text.split("\n\n"):
                if len(paragraph) >= SHORTEST:
                    yield paragraph.strip("\n")
