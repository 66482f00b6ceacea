"""Completion in a shell offers the stages, and the values of keys that have few."""

import os
import subprocess
import sys

import pytest

from lightning_distill.cli.completion import values_for
from lightning_distill.stages import STAGES


def test_the_shell_is_offered_the_stages():
    line = "lightning-distill stage="
    environment = {k: v for k, v in os.environ.items() if k != "LIGHTNING_DISTILL_ALLOW"}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_distill", "-sc", "query=bash"],
        capture_output=True,
        text=True,
        env={**environment, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        timeout=60,
    )
    assert done.stdout.split() == sorted(f"stage={name}" for name in STAGES)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("word", "offered"),
    [
        ("stage=ex", ["stage=export"]),
        ("loss.fused=", ["loss.fused=true", "loss.fused=false"]),
        ("sweep.rerun=", ["sweep.rerun=failed", "sweep.rerun=all", "sweep.rerun=none"]),
        ("sweep.rerun=failed,a", ["sweep.rerun=failed,all"]),
        ("student.max_steps=", []),
        ("stage", []),
        ("nothing=", []),
    ],
)
def test_values_are_those_of_the_schema(word, offered):
    assert values_for(word) == offered
