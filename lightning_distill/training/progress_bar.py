"""The progress bar of training and evaluation."""

from typing import Any

from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from lightning_distill.progress import is_shown


class RoleProgressBar(TQDMProgressBar):
    """A progress bar that names the model. role: `teacher` or `student`."""

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
        # Lightning's description is "Epoch 0", and training is a single epoch.
        self.train_progress_bar.set_description(self.train_description)


def progress_bar_callbacks(role: str) -> list[Callback]:
    """A progress bar if stderr is a terminal."""
    return [RoleProgressBar(role)] if is_shown() else []
