"""A training that is asked to stop does so at its next step, and keeps it."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_distill import ranks
from lightning_distill.errors import Stopped

log = logging.getLogger(__name__)

# A person's Ctrl-C; what ends a process, as a cluster's manager does; Slurm's warning before that,
# where `--signal=USR1@120` asks for it.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preemption(Callback):
    """Saves a checkpoint and ends the run at the first step after a signal, on all ranks alike.

    A second Ctrl-C ends it at once. After SIGUSR1 a job of Slurm is queued again.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._hear) for one in STOPS}

    def _hear(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, out: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        heard = [number for number in ranks.all_of(self.asked) if number]
        if not heard:
            return
        trainer.save_checkpoint(self.checkpoint)
        said = signal.Signals(heard[0]).name, trainer.global_step, self.checkpoint
        log.info("stopped by %s at step %s, which is kept in %s", *said)
        if signal.SIGUSR1 in heard and ranks.first():
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
