"""When the state of a training is saved, and how a signal ends one."""

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
from lightning_distill.screen import shown

log = logging.getLogger(__name__)

# Ctrl-C; what a cluster's manager sends; and Slurm's warning ahead of it (`--signal=USR1@120`).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class CheckpointCallback(Checkpoint):
    """Saves every so many steps and minutes, at the end, and when a signal asks to stop.

    After a stop signal, all ranks save at the next step and raise `Stopped`. A second Ctrl-C ends
    the process at once. After SIGUSR1, a Slurm job is requeued. A step's metrics are logged after
    it has ended, so its state is saved at the beginning of the next one.

    checkpoint: the file to write. every_n_steps: optimizer steps. every_n_minutes: on rank 0.
    """

    def __init__(self, checkpoint: Path, every_n_steps: int, every_n_minutes: float) -> None:
        self.checkpoint = checkpoint
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.received: int | None = None
        self._saved_step, self._saved_time = 0, time.monotonic()
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        # The resumed training may have had another number of micro-batches a step.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        batches = trainer.global_step * trainer.accumulate_grad_batches
        for count in (progress.current, progress.total):
            vars(count).update(dict.fromkeys(vars(count), batches))
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {s: signal.signal(s, self._receive) for s in STOP_SIGNALS}

    def _receive(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        if index % trainer.accumulate_grad_batches:
            return
        # Lightning chooses the steps to log by this count, and adds one too many at a validation.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        overdue = time.monotonic() - self._saved_time > 60 * self.every_n_minutes
        gathered = process_group.all_gather((self.received, overdue))
        received = [number for number, _ in gathered if number]
        overdue = gathered[0][1]
        step = trainer.global_step
        if received or overdue or (step > self._saved_step and step % self.every_n_steps == 0):
            self._save_before_this_batch(trainer)
        if received:
            self._stop(received)

    def _save_before_this_batch(self, trainer: L.Trainer) -> None:
        """Lightning has counted this batch as begun; a resumed run has to begin it again."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for count in (progress.current, progress.total):
            count.ready -= 1
        self._save(trainer)
        for count in (progress.current, progress.total):
            count.ready += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the end of the run, which is one epoch."""
        self._save(trainer)
        if received := [number for number in process_group.all_gather(self.received) if number]:
            self._stop(received)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.checkpoint)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def _stop(self, received: list[int]) -> None:
        name = signal.Signals(received[0]).name
        where = shown(self.checkpoint)
        log.info("stopped by %s at step %s, saved in %s", name, self._saved_step, where)
        if signal.SIGUSR1 in received and process_group.is_rank_zero():
            requeue_slurm_job()
        raise Stopped(received[0])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: Any) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, previous in self._previous_handlers.items():
            signal.signal(number, previous)
        self._previous_handlers = {}


def requeue_slurm_job() -> None:
    """Queues this Slurm job again; does nothing elsewhere."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{key}_ID") for key in ("JOB", "TASK"))
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    command = ["scontrol", "requeue", job]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        log.error("%s: %s", " ".join(command), finished.stderr.strip())
    else:
        log.info("Slurm job %s is queued again", job)
