"""The conversation in the terminal, or with lines from a file or a pipe."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper

from rich.console import Console

from lightning_distill.chat.speakers import Speaker
from lightning_distill.models.inspection import count_parameters
from lightning_distill.report.formatting import millions

EXIT, RESET = "/exit", "/reset"
# What a terminal obeys rather than shows: all control characters but tab and newline.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """stdout, with colors where it is a terminal. A model's text is shown and never obeyed."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def label(self, name: str) -> None:
        self.console.print(f"{name}: ", style="bold", end="")

    def write(self, text: str) -> None:
        self.console.out(CONTROLS.sub("", text), end="", highlight=False)

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
            screen.write("\n" * typed)
            return
        if line.strip():
            if not typed:
                screen.label("you")
                screen.write(f"{line}\n")
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
        screen.note(" (stopped)")
    else:
        screen.write("\n")
