"""Writes docs/reference/architectures.md: python tests/models/architectures_table.py

Every architecture of transformers' auto classes, as this package and transformers compute it.
"""

import logging
import re
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from compared import Comparison, compare, make_tasks, make_tokenizer
from tiny_models import MAPPINGS, architectures, reason_not_built
from transformers.utils import logging as transformers_logging

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
TITLES = {
    "causal": "Causal language models",
    "masked": "Masked language models",
    "classification": "Text classifiers",
    "translation": "Encoder-decoders",
}
INTRODUCTION = """\
# Architectures

`python tests/models/architectures_table.py` makes this page. Of {today}: transformers
{transformers}, torch {torch} on a CPU, float32.

For each model type of transformers' auto classes it saves a tiny model with random weights, loads
the folder as `teacher=pretrained` does, and compares with transformers alone:

- **logits**: of the batches that a task makes, padded and with positions, against those of each
  example by itself.
- **nll**: the test split's, against one from transformers' logits in float64.
- **fused**: `loss.fused=true` against `false`, the larger deviation of the loss and of its
  gradients. Without a number, logits are more than a matrix product, and all of them are held.
- **generation**: 8 greedily decoded tokens for each of 4 prompts of different lengths, in one
  batch, against `model.generate` for each prompt alone.

Deviations are the largest, relative to the largest logit or gradient where that is above 1.
`tests/models/test_pretrained_architectures.py` accepts at most 1e-5.
"""


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    today = date.today().isoformat()
    versions = {name: version(name) for name in ("transformers", "torch")}
    sections = [INTRODUCTION.format(today=today, **versions)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = make_tasks(Path(folder), make_tokenizer())
        sections += [section(task, tasks[task]) for task in MAPPINGS]
    PAGE.write_text("\n".join(sections))


def section(task, data) -> str:
    rows = [row(name, task, data) for name in architectures(task)]
    refused = sum("refused" in line for line in rows)
    left_out = sum("not compared" in line for line in rows)
    equal = len(rows) - refused - left_out
    lines = [
        f"## {TITLES[task]}\n",
        f"Of {len(rows)} architectures, {equal} are equal, {refused} are refused, and {left_out} "
        "are not compared.\n",
        "| architecture | logits | nll | fused | generation |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    return "\n".join([*lines, *rows, ""])


def row(name: str, task: str, data) -> str:
    print(task, name, file=sys.stderr)
    if reason := reason_not_built(task, name):
        return f"| `{name}` | | | | not compared: {reason} |"
    with tempfile.TemporaryDirectory() as folder:
        found = compare(name, task, data, Path(folder))
        return f"| `{name}` | {cells(found, folder)} |"


def cells(found: Comparison, folder: str) -> str:
    if found.refused:
        reason = re.sub(rf"^(name=)?{re.escape(folder)}[:,]? ", "", found.refused)
        return f"| | | refused: {reason}"
    numbers = [found.logits, found.nll, found.fused]
    generation = {True: "equal", False: "differs", None: ""}[found.generation]
    return " | ".join([*("" if x is None else f"{x:.0e}" for x in numbers), generation])


if __name__ == "__main__":
    main()
