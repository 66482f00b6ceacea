"""English prose that every CPython carries: the language reference's topics and the docstrings.

About 1.9 MB, and nothing to download. It differs a little between Python versions, so the
version is part of its fingerprint.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lightning_distill.data.sources.readers import pieces
from lightning_distill.errors import ConfigError

EDITION = 1  # raise it when this file starts to give other documents
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SHORTEST_DOCSTRING = 80  # characters


class PythonDocs:
    """`pydoc_data.topics` in pieces of about 1.5 kB, and the standard library's docstrings."""

    def fingerprint(self) -> str:
        return f"python_docs {EDITION}, {sys.implementation.name} {sys.version}"

    def documents(self) -> Iterator[str]:
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
        yield from (text for text in docstrings(tree) if len(text) > SHORTEST_DOCSTRING)


def modules(library: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Each module of the standard library, by its place in it; no tests."""
    for file in sorted(library.rglob("*.py")):
        place = file.relative_to(library)
        if LEFT_OUT.intersection(place.parts):
            continue
        try:
            yield place, ast.parse(file.read_bytes())
        except SyntaxError:  # a few files of the library hold other versions' syntax
            continue


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
