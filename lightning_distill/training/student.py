"""The student, trained on the predictions of frozen teachers."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_distill.distributed.fsdp import reshard
from lightning_distill.errors import ConfigError
from lightning_distill.losses.distributions import Sparse
from lightning_distill.losses.objective import Objective
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.output_head import Predictions, Predictor
from lightning_distill.training.module import TrainedModule


class Transfer(Protocol):
    """The part of `transfer.base.Transfer` that a training step uses."""

    def transform_batch(self, module: "StudentModule", batch: dict[str, Any]) -> dict[str, Any]: ...

    def teacher_predictions(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]: ...


class StudentModule(TrainedModule):
    """A student and its frozen teachers; none where the objective needs none (alpha = 0).

    vocab_size: V, of the logits that the loss compares. teacher_hash: identifies the teachers.
    A checkpoint holds this hash instead of their weights, and is refused under other teachers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        teachers: Sequence[Frozen],
        objective: Objective,
        transfer: Transfer,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        teacher_hash: str | None = None,
    ) -> None:
        super().__init__(model, vocab_size, objective, optimizer, schedule)
        self.teachers: Any = nn.ModuleList(teachers)
        self.intermediate: Any = nn.ModuleDict(objective.intermediate)
        self.transfer = transfer
        self.teacher_hash = teacher_hash
        for term in objective.intermediate.values():
            term.attach(model, teachers[0].model)

    @property
    def predictors(self) -> list[Predictor]:
        return [self.predict, *(teacher.predict for teacher in self.teachers)]

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.objective.weights.set_step(self.global_step, self.trainer.max_steps)
        batch = self.transfer.transform_batch(self, batch)
        with ExitStack() as recording:
            for term in self.intermediate.values():
                recording.enter_context(term.recording())
            student = self.predict(batch)
            teacher, teacher_mask = self.transfer.teacher_predictions(self.teachers, batch)
        labels, logs = batch["labels"], self.logs_now
        use_labels = "by_student" not in batch
        terms = self.objective(
            student, teacher, labels, teacher_mask, use_labels, logs, batch.get("kept")
        )
        reshard(predictor.model for predictor in self.predictors[1:])
        for name, term in self.intermediate.items():
            # Of a classifier, with one label per example, the mask selects the input positions.
            mask = batch.get("attention_mask") if labels.ndim == 1 else None
            terms = terms.plus(name, term, term(labels, batch.get("position_ids"), mask), logs)
        if logs:
            self.log("train/temperature", self.objective.weights.temperature)
            self.log("train/alpha", self.objective.weights.alpha)
        return self.step(terms)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_hash"] = self.teacher_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["teacher_hash"] != self.teacher_hash:
            raise ConfigError(
                f"The checkpoint was distilled from teacher {checkpoint['teacher_hash']}, not from "
                f"this run's, {self.teacher_hash}. Resume with that teacher, or start a new run."
            )
