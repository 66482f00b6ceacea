"""The messages that the how-to pages explain are those that the program prints."""

import re

import pytest
from pages import ROOT

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
TABLE = re.compile(r"^\| message \| remedy \|\n\| --- .*\n((?:\|.*\n?)+)", re.M)
TITLE = "## What goes wrong\n"
WINDOW = 4  # consecutive words of a message


def explained(page):
    """What is in backticks in the first cell of each row."""
    rows = [row for table in TABLE.findall(page.read_text()) for row in table.splitlines()]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.fixture(scope="module")
def printed():
    """The literals of the package, each message in one line, and the messages that tests expect."""
    sources = "\n".join(file.read_text() for file in (ROOT / "lightning_distill").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*[rf]?"', "", sources)
    return sources + (ROOT / "tests" / "bad_input" / "commands.yaml").read_text()


def is_printed(message, text):
    """A part of it as it stands, or words of it that have no values between them."""
    if any(part.strip() in text for part in message.split("…") if len(part.split()) > 1):
        return True
    words = message.split()
    parts = (words[i : i + WINDOW] for i in range(len(words) - WINDOW + 1))
    plain = (" ".join(part) for part in parts if all(re.match(r"[A-Za-z(]", word) for word in part))
    return message in text or any(part in text for part in plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_messages_are_those_of_the_program(page, printed):
    assert page.read_text().count(TITLE) == len(TABLE.findall(page.read_text()))
    assert [one for one in explained(page) if not is_printed(one, printed)] == []


def test_a_message_that_the_program_does_not_print_is_noticed(printed):
    assert not is_printed("`data.path=x` is a nice name for a file", printed)
    assert is_printed("loss.alpha=-1 must be a number from 0", printed)
