"""English prose that every CPython contains: the language reference's topics and the docstrings.

About 1.9 MB, nothing to download. It differs between Python versions, so the version is part of the
fingerprint.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.data.sources.readers import pieces
from lightning_distill.errors import ConfigError

VERSION = 1  # raise it when this file starts to give other documents
EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
MIN_DOCSTRING = 80  # characters


class PythonDocs:
    """A row is a document: about 1.5 kB of `pydoc_data.topics`, or a docstring of the library."""

    def fingerprint(self) -> str:
        return f"python_docs {VERSION}, {sys.implementation.name} {sys.version}"

    def rows(self) -> Iterator[str]:
        yield from _topics()
        yield from _docstrings(Path(sysconfig.get_paths()["stdlib"]))


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ConfigError(
            "data=python_docs needs Python's own documentation (the module pydoc_data), which "
            "this Python lacks. Install the full Python, or bring text: data=text data.path=..."
        ) from error
    for name in sorted(topics):
        yield from pieces(topics[name])


def _docstrings(library: Path) -> Iterator[str]:
    for _, tree in modules(library):
        yield from (text for text in docstrings(tree) if len(text) > MIN_DOCSTRING)


def modules(library: Path) -> Iterator[tuple[Path, ast.Module]]:
    """The path and syntax tree of each module of the standard library, without tests."""
    for file in sorted(library.rglob("*.py")):
        path = file.relative_to(library)
        if EXCLUDED.intersection(path.parts):
            continue
        try:
            yield path, ast.parse(file.read_bytes())
        except SyntaxError:  # a few files have another version's syntax
            continue


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
