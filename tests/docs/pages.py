"""The pages of the documentation, and the commands and blocks of Python on them.

A block that the tests cannot run has a line above it that its reader sees:

    *Not run by the tests: needs a GPU.*
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$", re.M | re.S)
NOT_RUN = re.compile(r"^ *\*Not run by the tests: (.+)\.\*\n\s*\Z", re.M)
INLINE = re.compile(r"`((?:lightning-distill|make) [^`]+)`")
HEREDOC = re.compile(r"<<-? *'?(\w+)'?")
SHELL = ("bash", "sh", "shell", "console")
# Neither commands nor Python: configuration, diagrams, and what a command prints.
OTHER = ("yaml", "json", "mermaid", "toml", "jsonl", "csv", "text", "bibtex", "markdown", "html")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    not_run: str | None = None  # the reason

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    text: str
    shown: str = ""  # what the page shows of its output
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text, name = page.read_text(), str(page.relative_to(ROOT))
    blocks = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        reason = NOT_RUN.search(before)
        line = before.count("\n") + 2
        code = dedent(fence["code"])
        blocks.append(Block(name, line, fence["language"], code, reason[1] if reason else None))
    return blocks


def commands_of(block: Block) -> list[Command]:
    """The commands of a block of shell, or those behind a prompt where a block shows output."""
    if block.language not in (*SHELL, "", "text"):
        return []
    prompts = block.language not in ("bash", "sh", "shell")
    commands = []
    for line, text, shown in _split(block.code, prompts):
        commands.append(Command(block.page, block.line + line, text, shown, block.not_run))
    return commands


def _split(code: str, prompts: bool) -> Iterator[tuple[int, str, str]]:
    """(number of its line, command, what is shown below it)."""
    lines = code.splitlines()
    number = 0
    while number < len(lines):
        first, text = number, lines[number]
        number += 1
        if prompts and not text.startswith("$ "):
            continue
        text = text.removeprefix("$ ")
        while text.endswith("\\"):
            text = text[:-1].rstrip() + " " + lines[number].strip()
            number += 1
        if end := HEREDOC.search(text):
            last = lines.index(end[1], number)
            text = "\n".join([text, *lines[number : last + 1]])
            number = last + 1
        shown = []
        while prompts and number < len(lines) and not lines[number].startswith("$ "):
            shown.append(lines[number])
            number += 1
        if text.strip() and not text.startswith("#"):
            yield first, text, "\n".join(shown)


def inline_commands(page: Path) -> list[Command]:
    """Those of the program in sentences and tables."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    without = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    return [
        Command(name, without[: hit.start()].count("\n") + 1, hit[1])
        for hit in INLINE.finditer(without)
    ]


def in_order(page: Path) -> list[Block | Command]:
    """What of a page is run, or marked: commands, and blocks of Python."""
    steps: list[Block | Command] = []
    for block in blocks_of(page):
        steps += [block] if block.language == "python" else commands_of(block)
    steps += [one for one in inline_commands(page) if one.text.startswith("lightning-distill")]
    return sorted(steps, key=lambda step: step.line)


def without_blocks(page: Path) -> str:
    return FENCE.sub("", page.read_text())
