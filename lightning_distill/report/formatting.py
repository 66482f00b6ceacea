"""Numbers, durations and job names as text."""

import math
from collections import Counter
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

MIN_WIDTH = 120  # columns of a table that is piped or logged


def terminal_width() -> int:
    console = Console()
    return console.width if console.is_terminal else max(console.width, MIN_WIDTH)


def print_table(table: Table, width: int | None = None) -> None:
    Console(width=width or terminal_width()).print(table)


def millions(parameters: float) -> str:
    """1,234,000 as `1.23 M`."""
    count = parameters / 1e6
    if count >= 1000:
        return f"{count / 1000:.2f} G"
    return f"{count:,.2f} M" if count >= 0.1 else f"{count:.2g} M"


def with_unit_prefix(count: float) -> str:
    """1,234,000 as `1.23 M`, 1,234 as `1.23 k`."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if count < 1000 or prefix == "E":
            break
        count /= 1000
    return f"{count:.3g} {prefix}".rstrip() if count else "0"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def jobs_text(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def steps_text(steps: Iterable[tuple[int, int] | None]) -> str:
    """Steps made, and those asked for where they are more: `400`, `6 of 4,000`, `5–6 of 4,000`."""
    pairs = [one for one in steps if one]
    made, max_steps = (_span([pair[i] for pair in pairs]) for i in (0, 1))
    return made if all(pair[0] == pair[1] for pair in pairs) else f"{made} of {max_steps}"


def _span(counts: list[int]) -> str:
    return "–".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else ""


def mean_and_deviation(values: list[Any], digits: int, unit: str = "") -> str:
    """`4.300 ± 0.100`; without a deviation that rounds to 0, and empty without finite values."""
    known = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not known:
        return ""
    text = f"{mean(known):,.{digits}f}"
    if len(known) > 1 and stdev(known) >= 0.5 * 10**-digits:
        text += f" ± {stdev(known):.{digits}f}"
    return text + unit


def short_name(name: str, keys: Iterable[str]) -> str:
    """`loss.alpha=1,student=xs` as `alpha=1, student=xs`.

    A key stays whole if another of `keys` has the same last part.
    """
    leaves = Counter(key.rsplit(".", 1)[-1] for key in keys)

    def shortened(part: str) -> str:
        key, equals, value = part.removeprefix("experiment/").partition("=")
        leaf = key.rsplit(".", 1)[-1]
        return f"{leaf}{equals}{value}" if equals and leaves[leaf] < 2 else part

    return ", ".join(map(shortened, name.split(",")))
