"""Markdown with other people's text in it: names and settings cannot break out of their place."""

import re
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


class Markdown(str):
    """A string that is Markdown already; templates escape every other value."""


def template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("lightning_distill.export"),
        autoescape=False,  # which would escape HTML only
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "block": code_block}
    return environment.get_template(name)


def text(value: Any) -> Markdown:
    """A line of plain text, without HTML, links, code or cells of a table."""
    if isinstance(value, Markdown):
        return value
    line = escape(" ".join(str(value).split()), quote=False)
    return Markdown(re.sub(r"([\\`\[\]|])", r"\\\1", line))


def code(value: Any) -> Markdown:
    line = " ".join(str(value).split())
    if "`" not in line:
        return Markdown(f"`{line}`")
    fence = _fence(line, 1)
    return Markdown(f"{fence} {line} {fence}")


def code_block(value: Any, language: str) -> Markdown:
    fence = _fence(str(value), 3)
    return Markdown(f"{fence}{language}\n{value}\n{fence}")


def _fence(content: str, minimum: int) -> str:
    """More backticks than any run of them in the content, which would close the code."""
    return "`" * max([minimum, *(len(run) + 1 for run in re.findall("`+", content))])
