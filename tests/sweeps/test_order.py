"""Jobs that need a teacher run before the baselines that are compared with it."""

import json

import pytest


def read(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_baseline_is_compared_with_its_teacher_at_once(in_process, tmp_path):
    overrides = ["-m", "loss.alpha=0,1", "sweep.name=s", f"paths.outputs={tmp_path}"]
    printed = in_process(*overrides).stdout
    assert printed.index("[1/2] alpha=1") < printed.index("[2/2] alpha=0")
    assert "before its teacher" not in printed
    (baseline,) = (f.parent for f in tmp_path.glob("sweeps/s/*alpha=0*/results.json"))
    assert "agreement" in read(baseline)["student"]
    # What alone would have given, to the last digit.
    alone = in_process("loss.alpha=0", f"hydra.run.dir={tmp_path / 'alone'}",
                       f"paths.outputs={tmp_path / 'other'}")  # fmt: skip
    assert alone.returncode == 0
    assert read(tmp_path / "alone")["student"]["nll"] == read(baseline)["student"]["nll"]
