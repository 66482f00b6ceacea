"""The progress bar of training and evaluation."""

from time import monotonic
from typing import Any

from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from lightning_distill.progress import FORMAT, is_shown

PERIOD = 0.2  # seconds between two updates of a bar


class RoleProgressBar(TQDMProgressBar):
    """A progress bar that names the model. role: `teacher` or `student`."""

    BAR_FORMAT = FORMAT

    def __init__(self, role: str) -> None:
        super().__init__(refresh_rate=1)
        self.role = role
        self.last_update = 0.0

    def _should_update(self, current: int, total: int) -> bool:
        """By time, as ten steps may take a minute, or a hundredth of a second."""
        due = current == total or monotonic() - self.last_update >= PERIOD
        if self.is_enabled and due:
            self.last_update = monotonic()
        return bool(self.is_enabled and due)

    @property
    def train_description(self) -> str:
        return f"training {self.role}"

    @property
    def test_description(self) -> str:
        return f"evaluating {self.role}"

    @property
    def predict_description(self) -> str:
        return f"writing {self.role}"

    def get_metrics(self, trainer: Any, module: Any) -> dict[str, Any]:
        """Those of `prog_bar=True`, by the last part of their names."""
        metrics = super().get_metrics(trainer, module)
        return {key.rpartition("/")[2]: one for key, one in metrics.items() if key != "v_num"}

    @property
    def validation_description(self) -> str:
        return "validating"

    # Lightning numbers the loaders of these stages, of which there is one.

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        super().on_validation_batch_start(*args, **kwargs)
        _describe(self.val_progress_bar, self.validation_description)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        super().on_test_batch_start(*args, **kwargs)
        _describe(self.test_progress_bar, self.test_description)

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        super().on_predict_batch_start(*args, **kwargs)
        _describe(self.predict_progress_bar, self.predict_description)

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        # Lightning's description is "Epoch 0", and training is a single epoch.
        self.train_progress_bar.set_description_str(self.train_description)


def _describe(bar: Any, description: str) -> None:
    if bar.desc != description:
        bar.set_description_str(description)


def progress_bar_callbacks(role: str) -> list[Callback]:
    """A progress bar if stderr is a terminal."""
    return [RoleProgressBar(role)] if is_shown() else []
