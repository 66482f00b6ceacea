"""Lines on the screen break between words, show short paths, and do not run into progress bars."""

import io
import logging
import random
from pathlib import Path

import pytest
from tqdm import tqdm

from lightning_distill.screen import ONCE, ScreenHandler, begin_command, fit_lines, shown


@pytest.fixture
def screen():
    begin_command()
    handler = ScreenHandler(io.StringIO())
    logger = logging.Logger("screen")
    logger.addHandler(handler)
    return logger, handler.stream


def test_lines_break_between_words_and_lose_none():
    dice = random.Random(0)
    for _ in range(200):
        words = ["x" * dice.randint(1, 100) for _ in range(dice.randint(1, 30))]
        lines = fit_lines(" ".join(words), 80).splitlines()
        assert " ".join(lines).split() == words
        assert all(len(line) <= 80 or len(line.split()) == 1 for line in lines)


def test_the_lines_of_a_message_stay_its_lines():
    assert fit_lines("a\n  b\n", 80) == "a\n  b"
    assert fit_lines("  indented words", 12) == "  indented\n    words"


def test_a_path_below_the_working_directory_is_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "outputs" / "runs") == str(Path("outputs", "runs"))
    assert shown("/etc") == "/etc"


def test_what_all_jobs_share_is_shown_once_a_command(screen):
    logger, stream = screen
    for command in range(2):
        begin_command()
        for _ in range(3):
            logger.info("tokens: %d", command, extra=ONCE)
            logger.info("teacher")
    assert stream.getvalue().split("\n") == [
        *("tokens: 0", "teacher", "teacher", "teacher"),
        *("tokens: 1", "teacher", "teacher", "teacher", ""),
    ]


def test_a_line_is_written_above_a_progress_bar(screen):
    logger, stream = screen
    with tqdm(total=2, file=stream, desc="training", ncols=60) as bar:
        bar.update()
        logger.info("a line")
    assert "\ra line\n" in stream.getvalue().replace(" " * 60, "")
