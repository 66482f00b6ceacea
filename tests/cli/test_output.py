"""What is printed and named can be written, whatever the terminal and the file system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_distill.sweeps.naming import sweep_name

LONG = "数据集" * 40  # 120 characters, 360 bytes


@pytest.mark.slow
def test_a_terminal_that_is_not_utf8_gets_replacements(in_process, tmp_path):
    """rich#68"""
    outputs = f"paths.outputs={tmp_path}"
    in_process("-m", "loss.alpha=0,1", "student.max_steps=2", "sweep.name=s", outputs)
    command = ["stage=report", f"report.sweep={tmp_path / 'sweeps' / 's'}", outputs]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_distill", *command],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert done.stdout.isascii()


def test_names_of_folders_fit_file_systems(tmp_path):
    name = sweep_name(None, [f"data.path='{LONG}/text.jsonl'", "seed=0,1"])
    assert len(name.encode()) < 200
    (tmp_path / name).mkdir()
    other = sweep_name(None, [f"data.path='{LONG}/text.csv'", "seed=0,1"])
    assert other != name


def test_the_home_folder_is_expanded(in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    in_process("paths.outputs='~/x'", "loss.alpha=0", "student.max_steps=2")
    (results,) = (tmp_path / "x").rglob("results.json")
    assert json.loads(results.read_text())["status"] == "finished"
    assert not list(Path.cwd().glob("~*"))


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket", "file:///tmp/x"])
def test_a_url_is_refused_as_outputs(in_process, url):
    assert "must be a folder of this machine" in in_process(
        f"paths.outputs={url}", expect=2).stderr  # fmt: skip


@pytest.mark.parametrize("name", ["project", "entity"])
def test_a_name_that_wandb_refuses_is_refused_before_anything_starts(in_process, tmp_path, name):
    refused = in_process(
        "logger=wandb", f"logger.wandb.{name}=team/distill", f"paths.outputs={tmp_path}", expect=2
    )
    (line,) = refused.stderr.strip().splitlines()
    assert f"logger.wandb.{name}=team/distill" in line
    assert not list(tmp_path.iterdir())


def test_an_unlogged_monitor_is_refused(in_process, tmp_path):
    """Lightning#11534"""
    stopping = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val_loss}"
    refused = in_process(f"+trainer.callbacks=[{stopping}]", f"paths.outputs={tmp_path}", expect=2)
    assert "monitor=val_loss is not logged; validation/nll is" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_crashed_says_so(in_process, monkeypatch, tmp_path):
    def crash(*_, **__):
        raise RuntimeError("out of the blue")

    monkeypatch.setattr("lightning_distill.pipeline.save_trained", crash)
    with pytest.raises(RuntimeError, match="out of the blue"):
        in_process("loss.alpha=0", f"hydra.run.dir={tmp_path / 'run'}", f"paths.outputs={tmp_path}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["user_error"]) == ("failed", False)
    assert "out of the blue" in results["error"]
