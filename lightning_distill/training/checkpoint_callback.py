"""When a training's state is saved; one that is asked to stop does so at its next step."""

import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_distill.distributed import process_group
from lightning_distill.errors import Stopped

log = logging.getLogger(__name__)

# A person's Ctrl-C; what ends a process, as a cluster's manager does; Slurm's warning before that,
# where `--signal=USR1@120` asks for it.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class CheckpointCallback(Checkpoint):
    """Saves a training's state every so many steps and minutes, and at its end; and where a signal
    asks for it, then ends the run, on all ranks alike.

    A second Ctrl-C ends it at once. After SIGUSR1 a job of Slurm is queued again. What a step says
    is logged behind its end, so it is saved at the beginning of the next one.
    """

    def __init__(self, checkpoint: Path, every_n_steps: int, every_n_minutes: float) -> None:
        self.checkpoint = checkpoint
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.asked: int | None = None
        self._saved = 0, time.monotonic()  # at which step, and when
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = trainer.global_step, time.monotonic()
        # What is gone on from may have had fewer micro-batches a step.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        met = trainer.global_step * trainer.accumulate_grad_batches
        for count in (progress.current, progress.total):
            vars(count).update(dict.fromkeys(vars(count), met))
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._hear) for one in STOPS}

    def _hear(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        if index % trainer.accumulate_grad_batches:
            return
        loop = trainer.fit_loop.epoch_loop
        # By which steps are logged; Lightning counts one too many behind a validation.
        loop._batches_that_stepped = trainer.global_step
        before, when = self._saved
        late = time.monotonic() - when > 60 * self.every_n_minutes
        said = process_group.all_gather((self.asked, late))  # the first one's clock counts
        heard = [number for number, _ in said if number]
        step = trainer.global_step
        if heard or said[0][1] or (step > before and step % self.every_n_steps == 0):
            # As if this batch had not been met yet: a run that goes on meets it again.
            counts = (loop.batch_progress.current, loop.batch_progress.total)
            for count in counts:
                count.ready -= 1
            self._save(trainer)
            for count in counts:
                count.ready += 1
        if heard:
            self._stop(heard)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of the run, which is one epoch."""
        self._save(trainer)
        if heard := [number for number in process_group.all_gather(self.asked) if number]:
            self._stop(heard)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.checkpoint)
        self._saved = trainer.global_step, time.monotonic()

    def _stop(self, heard: list[int]) -> None:
        said = signal.Signals(heard[0]).name, self._saved[0], self.checkpoint
        log.info("stopped by %s at step %s, which is kept in %s", *said)
        if signal.SIGUSR1 in heard and process_group.is_rank_zero():
            queue_again()
        raise Stopped(heard[0])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        """Before Lightning puts back what was there before its own handlers."""
        for one, before in self._before.items():
            signal.signal(one, before)
        self._before = {}


def queue_again() -> None:
    """Has Slurm start this job anew, where it is one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{key}_ID") for key in ("JOB", "TASK"))
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        log.error("scontrol requeue %s: %s", job, done.stderr.strip())
    else:
        log.info("Slurm's job %s is queued again", job)
