"""Makes a list of a docstring's lines about arguments, for the pages that mkdocstrings writes.

temperature: above 0. A number, or a schedule, and
    what is indented belongs to it.
"""

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"[a-z_]\w*(, (each )?[a-z_]\w*)*: ")


class Arguments(griffe.Extension):
    """An extension of griffe, which reads the sources for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(docstring: str) -> str:
    """Each line `name: meaning` as an item of a list, set apart from the text around it."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        argument = ARGUMENT.match(line)
        continues = inside and line.startswith(" ")
        if argument:
            names, meaning = line.split(": ", 1)
            quoted = ", ".join(f"`{name}`" for name in names.split(", "))
            lines += ([] if inside else [""]) + [f"- {quoted}: {meaning}"]
        elif continues:
            lines.append(f"    {line.strip()}")
        else:
            lines += ([""] if inside else []) + [line]
        inside = bool(argument) or continues
    return "\n".join(lines)
