"""The conversation in the terminal, or with lines from a file or a pipe."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper

from rich.cells import cell_len
from rich.console import Console

from lightning_distill.chat.speakers import Speaker
from lightning_distill.models.inspection import count_parameters
from lightning_distill.report.formatting import millions

EXIT, RESET = "/exit", "/reset"
# What a terminal obeys rather than shows: all control characters but tab and newline.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

WORD_ENDS = re.compile(r"(?<=[\s\u2e80-\U0003ffff])")  # also after each character of CJK scripts


class Screen:
    """stdout, with colors where it is a terminal. A model's text is shown and never obeyed.

    In a terminal, lines are broken between words. A word is written when it is complete.
    """

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._column, self._word = 0, ""

    def label(self, name: str) -> None:
        label = f"{name}: "
        self.console.print(label, style="bold", end="")
        self._column = cell_len(label)

    def write(self, text: str) -> None:
        text = CONTROLS.sub("", text)
        if not self.console.is_terminal:
            self._out(text)
            return
        *words, self._word = WORD_ENDS.split(self._word + text)
        for word in words:
            self._place(word)

    def end_line(self) -> None:
        self._place(self._word)
        self._out("\n")
        self._column, self._word = 0, ""

    def _place(self, word: str) -> None:
        """word: with the space or newline after it."""
        width, letters = self.console.width, cell_len(word.rstrip())
        if self._column and self._column + letters > width:
            self._out("\n")
            self._column = 0
        self._out(word)
        while self._column + letters > width:  # the terminal breaks a word that is too long
            letters -= width
        self._column += letters + cell_len(word) - cell_len(word.rstrip())
        if word.endswith("\n"):
            self._column = 0

    def _out(self, text: str) -> None:
        self.console.out(text, end="", highlight=False)

    def note(self, text: str) -> None:
        self.console.print(text, style="dim")


def converse(speakers: Sequence[Speaker]) -> None:
    """Each line is answered by each of the speakers in turn, until the input ends."""
    screen = Screen()
    for one in speakers:
        size = f"{millions(count_parameters(one.model))} parameters"
        screen.note(f"{one.role}: {'; '.join(filter(None, (size, one.habit)))}")
    screen.note(f"{RESET} forgets the conversation, {EXIT} or Ctrl-D ends it.")
    for line in _lines(screen):
        if line.strip() == EXIT:
            return
        for one in speakers:
            if line.strip() == RESET:
                one.reset()
            else:
                _reply(screen, one, line)


def _lines(screen: Screen) -> Iterator[str]:
    """The lines that are not blank. Those that no terminal shows as they are typed are printed."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):  # absent on Windows
            import readline  # noqa: F401, which makes `input` edit the line
    elif isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("you: " if typed else "")
        except (EOFError, KeyboardInterrupt):
            if typed:
                screen.end_line()
            return
        if line.strip():
            if not typed:
                screen.label("you")
                screen.write(line)
                screen.end_line()
            yield line


def _reply(screen: Screen, speaker: Speaker, text: str) -> None:
    prompt = speaker.prompt(text)
    positions = f", with {speaker.positions:,} positions" if speaker.positions else ""
    if not speaker.fits(prompt):
        screen.note(f"{speaker.role}: no answer to {len(prompt.ids):,} tokens{positions}")
        return
    if prompt.forgotten:
        screen.note(f"{speaker.role}: forgets its oldest turns ({prompt.forgotten}){positions}")
    screen.label(speaker.role)
    try:
        speaker.answer(text, prompt, screen.write)
    except KeyboardInterrupt:
        screen.write(" (stopped)")
    screen.end_line()
