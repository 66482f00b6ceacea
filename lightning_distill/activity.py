"""Signs of life in a terminal: a bar that stands still, or work without a bar, shows its time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic, time
from typing import Any

from lightning_distill.progress import is_shown
from lightning_distill.screen import last_line

PAUSE = 1.0  # seconds between two looks, and without output before something is shown


@contextmanager
def activity(description: str) -> Iterator[None]:
    """Whatever runs inside is silent for two seconds at most; outside of a terminal, as it is.

    description: of the work, until a line is logged, which then describes it.
    """
    if not is_shown():
        yield
        return
    end = Event()
    thread = Thread(target=_watch, args=(description, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _watch(description: str, end: Event) -> None:
    from tqdm import tqdm

    begin, own, text = monotonic(), None, ""
    while not end.wait(PAUSE):
        line, when = last_line(begin, description)
        if own is not None and (line != text or _others(own)):
            own.close()
            own = None
        if others := _others(own):
            for bar in others:
                if time() - bar.last_print_t > PAUSE:
                    bar.refresh()
        elif own is not None:
            own.refresh()
        elif monotonic() - when > PAUSE:
            text = line
            form = "{desc} · {elapsed}"  # below the cursor, where it is in no other bar's place
            own = tqdm(desc=line, leave=False, bar_format=form, file=sys.stderr, position=1)
            own.start_t -= monotonic() - when
            own.refresh()
    if own is not None:
        own.close()


def _others(own: Any) -> list[Any]:
    """The bars on the screen besides our own."""
    from tqdm import tqdm

    bars = list(getattr(tqdm, "_instances", ()))
    return [b for b in bars if b is not own and not b.disable and time() - b.start_t >= b.delay]
