"""Jobs that need a teacher run before the baselines that are compared with it."""

import json

import pytest

from lightning_distill.metrics.declarations import AGREEMENT


@pytest.mark.slow
def test_a_baseline_is_compared_with_its_teacher_at_once(in_process, tmp_path_factory):
    sweep = tmp_path_factory.mktemp("sweep")
    done = in_process("-m", "loss.alpha=0,1", "logger=wandb", f"hydra.sweep.dir={sweep}")
    printed = done.stdout
    assert printed.index("[1/2] alpha=1") < printed.index("[2/2] alpha=0")
    assert "before its teacher" not in printed
    jobs = [json.loads(file.read_text()) for file in sweep.glob("*/results.json")]
    (baseline,) = (job for job in jobs if "loss.alpha=0" in job["overrides"])
    assert AGREEMENT.key in baseline["student"]
    # What it has alone, to the last digit.
    run = tmp_path_factory.mktemp("alone")
    in_process("loss.alpha=0", f"hydra.run.dir={run}")
    alone = json.loads((run / "results.json").read_text())
    assert alone["student"]["nll"] == baseline["student"]["nll"]

    # On the screen, what holds for all jobs is one line. Each job's log has its own.
    for line in ("tokens: ", "W&B: offline"):
        assert printed.count(line) == 1
        assert all(line in log.read_text() for log in sweep.glob("*/job.log"))
    here = [line for line in printed.splitlines() if str(tmp_path_factory.getbasetemp()) in line]
    assert not here  # no path is absolute that is shorter as a relative one
