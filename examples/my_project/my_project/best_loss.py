"""A callback of Lightning's: the lowest training loss, printed when the training ends."""

import math
from typing import Any

import lightning as L


class BestLoss(L.Callback):
    def __init__(self) -> None:
        self.lowest, self.step = math.inf, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if (loss := float(outputs["loss"])) < self.lowest:
            self.lowest, self.step = loss, trainer.global_step

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        name = type(module).__name__  # TeacherModule or StudentModule
        module.print(f"{name}: lowest loss {self.lowest:.3f}, at step {self.step}")
