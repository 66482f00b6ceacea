"""Completion in a shell offers the stages, and the values of keys that have few."""

import os
import subprocess
import sys

import pytest

from lightning_distill.cli.completion import values_for
from lightning_distill.stages import STAGES


@pytest.mark.parametrize("allowed", ["", "evaluate.task_path", "trust_remote_code"])
def test_the_shell_is_offered_the_stages(monkeypatch, allowed):
    """A key that is allowed is not imported: `evaluate` is a package that imports torch."""
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", allowed)
    line = "lightning-distill stage="
    done = subprocess.run(
        [sys.executable, "-m", "lightning_distill", "-sc", "query=bash"],
        capture_output=True,
        text=True,
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        timeout=60,
    )
    assert done.stdout.split() == sorted(f"stage={name}" for name in STAGES)
    assert done.stderr == ""


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
