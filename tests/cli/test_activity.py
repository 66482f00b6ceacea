"""In a terminal no work is silent, and elsewhere nothing is added."""

import io
import logging
import sys
import time

import pytest

from lightning_distill import activity as module
from lightning_distill.activity import activity
from lightning_distill.progress import progress
from lightning_distill.screen import ScreenHandler


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch):
    """What a function writes to a terminal within an activity that is named `importing`."""

    def run(work):
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(module, "PAUSE", 0.05)
        with activity("importing"):
            work(stream)
        return stream.getvalue()

    return run


def test_work_without_a_bar_shows_its_name_and_goes(shown):
    drawn = shown(lambda _: time.sleep(0.5))
    assert drawn.count("importing · 00:00") > 2
    assert " " * len("importing · 00:00") in drawn.rpartition("importing")[2]  # it is erased


def test_the_last_line_that_was_logged_names_the_work(shown):
    def work(stream):
        logger = logging.Logger("screen")
        logger.addHandler(ScreenHandler(stream))
        logger.info("training a tokenizer")
        time.sleep(0.5)

    drawn = shown(work)
    assert "training a tokenizer · 00:00" in drawn
    assert "importing" not in drawn


def test_a_bar_that_stands_still_is_drawn_again(shown):
    def work(_):
        bar = progress(range(2), "reading")
        bar.delay = 0
        for _ in bar:
            time.sleep(0.5)

    drawn = shown(work)
    assert sum("reading   0 %" in one for one in drawn.split("\r")) > 2
    assert "importing" not in drawn


def test_outside_of_a_terminal_nothing_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.05)
    with activity("importing"):
        time.sleep(0.2)
    assert capsys.readouterr() == ("", "")
