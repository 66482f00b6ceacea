"""The pages of the documentation, and the blocks of commands and Python on them.

A block that the tests cannot run has a line above it that its reader sees:

    *Not run by the tests: needs a GPU.*
"""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$", re.M | re.S)
NOT_RUN = re.compile(r"^ *\*Not run by the tests: (.+)\.\*\n\s*\Z", re.M)
INLINE = re.compile(r"`((?:lightning-distill|make) [^`]+)`")
SHELL = ("bash", "sh", "shell", "console")
# Neither commands nor Python: configuration, diagrams, and what a command prints.
OTHER = ("yaml", "json", "mermaid", "toml", "jsonl", "csv", "text", "bibtex", "markdown", "html")
# Of what precedes a command in its block, this is in force when the command runs.
SETUP = re.compile(r"(?:cd|export) ")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    not_run: str | None  # the reason

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    block: Block
    line: int
    text: str
    setup: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.block.page}:{self.line} {self.text}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    blocks = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        reason = NOT_RUN.search(before)
        name, line = str(page.relative_to(ROOT)), before.count("\n") + 2
        code = dedent(fence["code"])
        blocks.append(Block(name, line, fence["language"], code, reason and reason[1]))
    return blocks


def commands_of(block: Block) -> list[Command]:
    """The commands of a block of shell, or after the prompts `$` of a block that shows output."""
    if block.language not in (*SHELL, "", "text"):
        return []
    shows_output = block.language in ("", "text", "console")
    commands: list[Command] = []
    setup: list[str] = []
    lines = enumerate(block.code.splitlines(), block.line)
    for number, line in lines:
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + next(lines)[1].strip()
        if shows_output and not line.startswith("$ "):
            continue
        line = line.removeprefix("$ ").strip()
        if not line or line.startswith("#"):
            continue
        commands.append(Command(block, number, line, tuple(setup)))
        if SETUP.match(line):
            setup.append(line)
    return commands


def without_blocks(page: Path) -> str:
    return FENCE.sub("", page.read_text())
