"""The progress bar of a training or an evaluation."""

import sys
from typing import Any

from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class Progress(TQDMProgressBar):
    """One bar for the whole of a training run, with the time left."""

    def __init__(self, role: str) -> None:
        super().__init__(refresh_rate=10)
        self.role = role

    @property
    def train_description(self) -> str:
        return f"training {self.role}"

    @property
    def test_description(self) -> str:
        return f"evaluating {self.role}"

    @property
    def predict_description(self) -> str:
        return f"writing {self.role}"

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        # Lightning says "Epoch 0"; a run is one epoch, so that says nothing.
        self.train_progress_bar.set_description(self.train_description)


def progress(role: str) -> list[Callback]:
    """A progress bar where somebody can see it move; none in a file."""
    return [Progress(role)] if sys.stderr.isatty() else []
