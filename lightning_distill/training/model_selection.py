"""What the validations of a training decide: which weights are kept, and when it ends."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from lightning_distill.distributed import process_group
from lightning_distill.training.checkpoint_io import best_of
from lightning_distill.training.module import VALIDATION_NLL


@dataclass(frozen=True)
class ModelSelection:
    """keep_best: whether the weights of the validation with the lowest nll are kept, not the last.
    stop_after: validations without a lower nll that end the training; None for any number.
    """

    keep_best: bool = False
    stop_after: int | None = None

    def callbacks(self, file: Path) -> list[Callback]:
        """New ones, for one trainer. file: of the best weights."""
        callbacks: list[Callback] = [BestWeights(file)] if self.keep_best else []
        if self.stop_after is not None:
            callbacks.append(_EarlyStopping(self.stop_after))
        return callbacks


LAST_WEIGHTS = ModelSelection()


class _EarlyStopping(EarlyStopping):
    """Of a class of its own, beside which the user can add Lightning's."""

    def __init__(self, patience: int) -> None:
        super().__init__(
            VALIDATION_NLL, patience=patience, check_finite=False, check_on_train_epoch_end=False
        )


class BestWeights(Callback):
    """Saves the weights of the validation with the lowest nll.

    The file holds its nll, and only a lower one replaces it. A resumed training that repeats the
    validations since its checkpoint therefore ends with the same file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.nll = math.inf
        self.step: int | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        saved = process_group.broadcast(best_of(self.file) if self.file.exists() else None)
        if saved:
            self.nll, self.step = saved

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        nll = float(trainer.callback_metrics[VALIDATION_NLL])
        if nll < self.nll:
            self.nll, self.step = nll, trainer.global_step
            trainer.save_checkpoint(self.file, weights_only=True)

    def state_dict(self) -> dict[str, Any]:
        """For `checkpoint_io`, which resumes from a checkpoint only beside the file."""
        return {"step": self.step}
