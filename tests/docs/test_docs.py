"""The documentation: links resolve, and the commands that it shows compose."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from pages import (
    FENCE,
    INLINE,
    NAMES,
    OTHER,
    PAGES,
    ROOT,
    SHELL,
    blocks_of,
    commands_of,
    without_blocks,
)

from lightning_distill.cli import app  # noqa: F401, which registers the resolvers
from lightning_distill.config.catalog import CONF
from scripts import docs_tables

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
PATH = re.compile(r"`((?:lightning_distill|conf|tests|benchmarks|scripts)/[\w./-]+)`")
WALKED = re.compile(r"`([\w/]+\.py)`")


def lines_of_shell(page: Path) -> list[str]:
    """The command lines of a page, those in its sentences too."""
    lines = [command.text for block in blocks_of(page) for command in commands_of(block)]
    return lines + INLINE.findall(without_blocks(page))


def commands(program: str) -> list[tuple[str, ...]]:
    """The arguments of every command line of one program, each once."""
    found = {}
    for page in PAGES:
        for line in lines_of_shell(page):
            if re.match(rf"(?:{ASSIGNMENT.pattern} )*{program} ", line):
                words = shlex.split(line, comments=True)
                found[tuple(words[words.index(program) + 1 :])] = True
    return list(found)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = FENCE.sub("", docs_tables.on_page_markdown(page.read_text()))
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page):
    for link in LINK.findall(without_blocks(page)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        assert not anchor or anchor in headings(there), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page):
    for path in PATH.findall(page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_architecture_page_names_files_and_packages_that_exist():
    text = (ROOT / "docs" / "development" / "architecture.md").read_text()
    package = ROOT / "lightning_distill"
    for file in WALKED.findall(text):
        assert (package / file).exists() or (ROOT / file).exists(), file
    for step in re.findall(r"^\d+\. (.+(?:\n   .+)*)", text, re.M):
        code = "".join((package / file).read_text() for file in WALKED.findall(step))
        for name in re.findall(r"`(?:\w+\.)*(\w+)`", WALKED.sub("", step)):
            assert re.search(rf"\b{name}\b", code), step
    rooms = {room.parent.name for room in package.glob("*/__init__.py")}
    rooms |= {room.stem for room in package.glob("*.py")} - {"__init__", "__main__"}
    listed = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text.split("```mermaid")[0], re.M)
    assert rooms <= {name for row in listed for name in re.findall(r"\w+", row)}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_block_is_run_or_marked(page):
    """A block whose language the tests do not know would be left out; so would an old mark."""
    assert "<!-- not run" not in page.read_text(), "write *Not run by the tests: REASON.*"
    for block in blocks_of(page):
        assert block.language in ("", "python", *SHELL, *OTHER), block
        if block.language not in ("python", *SHELL):
            assert not re.search(r"^(lightning-distill|make|pip) ", block.code, re.M), block


@pytest.mark.parametrize("arguments", commands("lightning-distill"), ids=" ".join)
def test_commands_compose(arguments, monkeypatch):
    """Of a sweep, the first value of each setting."""
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", "my_package,evaluate.task_path")
    if {"--help", "--version", "--config-dir"} & set(arguments):
        return  # which test_commands_run.py runs
    sweeps = "-m" in arguments
    first, several = [], False
    overrides = [a for a in arguments if a not in ("-m", "--cfg", "job")]
    for override in OverridesParser.create().parse_overrides(overrides):
        line = override.input_line
        if override.is_sweep_override():
            several = True
            values = override.sweep_iterator()
            line = f"{override.get_key_element()}={next(iter(values))}"
        first.append(line)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", first, return_hydra_config=True)
    assert sweeps or not several or cfg.hydra.mode == RunMode.MULTIRUN


def test_targets_of_make_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {target for target, *_ in commands("make")} <= set(targets)
