"""The tables of docs/reference that follow from the package, written when MkDocs builds the site.

A page names one in a comment, `<!-- table: config keys -->`, and the hook puts it there.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from lightning_distill.cli.help import default_of, first_comment
from lightning_distill.config.catalog import default_options, groups
from lightning_distill.config.schema import FREE, RENAMED, SCHEMA
from lightning_distill.metrics.declarations import GROUPS
from lightning_distill.stages import STAGES

PLACE = re.compile(r"^<!-- table: (.+?) -->$", re.M)
TOP = "Top level"
# Groups that set the texts of the program itself.
INTERNAL = ("hydra/help", "hydra/hydra_logging", "hydra/job_logging")
ORDER = ("data", "teacher", "student", "model", "transfer", "loss", "optimizer", "schedule")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with the text of each page."""
    return PLACE.sub(lambda place: TABLES[place[1]](), markdown)


def config_keys() -> str:
    """Every key of the schema, a section for each node of the config."""
    sections: dict[str, list[str]] = {}
    for key in SCHEMA:
        node = key.split(".")[0]
        has_keys = any(other.startswith(f"{node}.") for other in SCHEMA)
        sections.setdefault(node if has_keys else TOP, []).append(key)
    return "\n".join(_section(title, keys) for title, keys in sections.items())


def _section(title: str, keys: list[str]) -> str:
    lines = [f"## {title}", ""]
    if title in SCHEMA:
        meaning = SCHEMA[title].meaning
        lines += [f"{meaning[0].upper()}{meaning[1:]}.", ""]
    if title in groups():
        options = ", ".join(f"`{file.stem}`" for file in groups()[title])
        lines += [f"[Options](options.md#{title}) of `{title}=`: {options}.", ""]
    if title in FREE:
        lines += [f"Takes other arguments of its class as `+{title}.<argument>=<value>`.", ""]
    rows = (_key_row(key) for key in keys if key != title)
    return "\n".join([*lines, table(("key", "type", "default", "meaning"), rows), ""])


def _key_row(key: str) -> tuple[str, ...]:
    one, default, value = SCHEMA[key], default_of(key), ""
    if default is not None and default.required:
        value = f"required by `{default.choice}`"
    elif default is not None:
        value = code(default.value) + (f" with `{default.choice}`" if default.choice else "")
        value += ", or [as trained](#values-that-follow)" if default.varies else ""
    kind = one.type_and_range() or "any"
    return f"`{key}`{{ #{key} }}", text(kind), value, text(one.meaning)


def renamed_keys() -> str:
    return table(("old", "new"), ((code(old), code(new)) for old, new in RENAMED.items()))


def options() -> str:
    """Every config group with its options, and what the first comment of each file says."""
    shown = [group for group in groups() if group not in INTERNAL]
    shown.sort(key=lambda group: ORDER.index(group) if group in ORDER else len(ORDER))
    parts = []
    for group in shown:
        default = default_options().get(group)
        rows = [
            (code(file.stem) + (" (default)" if file.stem == default else ""), text(comment))
            for file in groups()[group]
            if (comment := first_comment(file))
        ]
        parts += [f"## {group}", "", table((f"`{group}=`", "meaning"), rows), ""]
    return "\n".join(parts)


def stages() -> str:
    rows = (
        (
            f"[`{name}`](#{name})",
            text(stage.help),
            "yes" if stage.makes_jobs else "",
            "yes" if stage.distributed else "",
            f"[`{node}.*`](config.md#{node})" if (node := stage.config_node) else "",
        )
        for name, stage in STAGES.items()
    )
    heads = ("`stage=`", "does", "writes results", "uses all devices", "own keys")
    return table(heads, rows)


def metrics() -> str:
    """Every declared metric: of both models, of the student alone, and of the cost."""
    both = {one.key for one in GROUPS["teacher"]}
    tables = {
        "Of student and teacher": GROUPS["teacher"],
        "Of the student against its teacher": [
            one for one in GROUPS["student"] if one.key not in both
        ],
        "Of the cost": GROUPS["cost"],
    }
    parts = []
    for title, declared in tables.items():
        rows = (
            (f"`{one.key}`{{ #{one.key} }}", text(one.label), one.direction, text(one.meaning))
            for one in declared
        )
        heads = ("key", "column", "direction", "meaning")
        parts += [f"### {title}", "", table(heads, rows), ""]
    return "\n".join(parts)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: str) -> str:
    return f"`{value}`".replace("|", r"\|") if value else ""


def text(plain: str) -> str:
    """A sentence of the package, in which only backticks have a meaning, as Markdown."""
    parts = plain.split("`")
    special = re.compile(r"[<>&*_\[\]{}|\\]")
    parts[::2] = [special.sub(lambda one: f"&#{ord(one[0])};", part) for part in parts[::2]]
    parts[1::2] = [code(part) for part in parts[1::2]]
    return "".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "config keys": config_keys,
    "renamed keys": renamed_keys,
    "options": options,
    "stages": stages,
    "metrics": metrics,
}
