"""The small model, trained on what the frozen big one predicts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_distill import ConfigError
from lightning_distill.losses import Objective
from lightning_distill.models import Frozen
from lightning_distill.training import LanguageModule
from lightning_distill.transfer import Online


class StudentModule(LanguageModule):
    """A student and its frozen teacher; without one if the objective needs none (alpha = 0).

    teacher_hash: says which teacher. A checkpoint holds no weight of the teacher, only this hash,
    and does not resume under another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        transfer: Online,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        teacher_hash: str | None = None,
    ) -> None:
        super().__init__(model, objective, optimizer, schedule)
        self.teacher = Frozen(teacher) if teacher is not None else None
        self.transfer = transfer
        self.teacher_hash = teacher_hash

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        teacher = self.transfer.logits(self.teacher, batch) if self.teacher else None
        return self.step(self(batch), teacher, batch["labels"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["teacher_hash"] = self.teacher_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["teacher_hash"] != self.teacher_hash:
            raise ConfigError(
                f"The checkpoint was distilled from teacher {checkpoint['teacher_hash']}, not from "
                f"this run's, {self.teacher_hash}. Resume with that teacher, or start a new run."
            )
