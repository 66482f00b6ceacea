"""Runs that get a signal to stop."""

import csv
import json
import os
import shutil
import signal

import lightning as L
import pytest
import torch
from conftest import TINY
from forked import Place
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_distill.errors import Stopped
from lightning_distill.models import sizes
from lightning_distill.training.checkpoint_callback import CheckpointCallback
from lightning_distill.training.checkpoint_io import LAST, AtomicCheckpointIO, step_of
from lightning_distill.training.metrics_csv import truncate_curves
from lightning_distill.training.teacher import TeacherModule

LONG = ["student.max_steps=180", "teacher.max_steps=5", "checkpoint_every_n_steps=40"]


class StopAt(Callback):
    """Requests a stop during one step, as a signal would."""

    def __init__(self, step, keeping):
        self.step, self.keeping = step, keeping

    def on_before_zero_grad(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            self.keeping.received = signal.SIGTERM


@pytest.fixture
def train(make_data, tmp_path):
    """Trains for 12 steps with a validation every third; a stop can be requested in any step."""
    data = make_data()

    def train(stop=None):
        folder = tmp_path / str(stop)
        torch.manual_seed(1)
        module = TeacherModule(
            sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer),
            lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
            lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            len(data.tokenizer),
            shifted_labels=True,
        )
        data.set_train_examples(None, seed=0)
        keeping = CheckpointCallback(folder / LAST, 5, 10)
        logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
        if (folder / LAST).exists():
            truncate_curves([logger], step_of(folder / LAST))
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=12,
            val_check_interval=3,
            limit_val_batches=1,
            log_every_n_steps=1,
            logger=logger,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[keeping, StopAt(stop, keeping)],
            plugins=[AtomicCheckpointIO()],
        )
        start = folder / LAST
        trainer.fit(module, datamodule=data, ckpt_path=str(start) if start.exists() else None)
        with (folder / "metrics.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        names = ("train/loss", "validation/nll")
        curves = {name: [(r["step"], r[name]) for r in rows if r.get(name)] for name in names}
        return curves, module.model.state_dict()

    return train


def test_a_training_stopped_at_any_step_resumes_to_the_same_curves_and_weights(train):
    curves, weights = train()
    assert [step for step, _ in curves["train/loss"]] == [str(step) for step in range(12)]
    assert [step for step, _ in curves["validation/nll"]] == ["2", "5", "8", "11"]
    for step in range(1, 13):
        with pytest.raises(Stopped):
            train(step)
        resumed_curves, resumed = train(step)
        assert resumed_curves == curves, step
        assert all(torch.equal(resumed[name], weights[name]) for name in weights)


@pytest.fixture
def start(text_file, tmp_path):
    """Starts the command and waits for a checkpoint. Returns the command and its folder."""

    def start(**env):
        where = [f"data.path={text_file}", f"paths.outputs={tmp_path}"]
        command = Place(tmp_path / "place").start(*TINY, *LONG, *where, **env)
        (saved,) = command.until(lambda: list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")))
        return command, saved.parent.parent

    return start


def student(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    return results["student"]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_scores_of_an_uninterrupted_one(start, in_process, tmp_path):
    command, folder = start()
    same = [*LONG, "logger=csv", f"paths.outputs={tmp_path}"]
    command.signal(signal.SIGSTOP)
    in_process(*same)  # while the first process lives
    command.signal(signal.SIGCONT)
    (undisturbed,) = set(folder.parent.iterdir()) - {folder}
    command.signal(signal.SIGINT)
    output = command.wait(130, timeout=60).said
    assert "stopped by SIGINT at step" in output
    assert "Run the same command again to resume" in output
    (tmp_path / "copy").mkdir()
    shutil.copytree(folder, tmp_path / "copy" / folder.name)
    assert "resuming from step" in in_process(*same).stdout
    assert set(folder.parent.iterdir()) == {folder, undisturbed}
    assert student(folder) == student(undisturbed)
    shutil.rmtree(folder)
    shutil.move(tmp_path / "copy" / folder.name, folder.parent)
    assert "resuming from step" not in in_process(*same, "trainer.resume=never").stdout
    assert len(list(folder.parent.iterdir())) == 3


@pytest.mark.slow
def test_a_job_that_slurm_warns_is_requeued(start, tmp_path):
    arguments = tmp_path / "arguments"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {arguments}\n')
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command, _ = start(SLURM_JOB_ID="12", PATH=path)
    command.signal(signal.SIGUSR1)
    command.wait(128 + signal.SIGUSR1, timeout=60)
    assert arguments.read_text().split() == ["requeue", "12"]
