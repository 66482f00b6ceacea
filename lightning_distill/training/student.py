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
from lightning_distill.models.inspection import num_outputs
from lightning_distill.models.output_head import Predictor
from lightning_distill.models.predictions import Predictions
from lightning_distill.training.module import TrainedModule


class Transfer(Protocol):
    """The part of `transfer.base.Transfer` that a training step uses."""

    def transform_batch(self, module: "StudentModule", batch: dict[str, Any]) -> dict[str, Any]: ...

    def teacher_predictions(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]: ...


class TeacherForward:
    """The transfer of a module without another: each teacher's forward pass on each batch."""

    def transform_batch(self, module: "StudentModule", batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def teacher_predictions(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]:
        return [teacher(batch) for teacher in teachers], None


class StudentModule(TrainedModule):
    """A student and its frozen teachers.

        module = StudentModule(student, teacher, Objective(temperature=2.0))
        L.Trainer(max_epochs=1).fit(module, datamodule)

    teacher: a model, several, or None where the objective needs none (alpha = 0).
    objective: None for `Objective()`.
    transfer: None for the teacher's forward pass on each batch.
    vocab_size: V, of the logits that the loss compares; None for all rows that the models share.
    teacher_hash: identifies the teachers. A checkpoint holds this hash instead of their weights,
        and is refused under other teachers.
    Other arguments, and what a batch holds: see `TrainedModule`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | Frozen | Sequence[PreTrainedModel | Frozen] | None = None,
        objective: Objective | None = None,
        transfer: Transfer | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Callable[..., Any] | None = None,
        vocab_size: int | None = None,
        teacher_hash: str | None = None,
        shifted_labels: bool = False,
    ) -> None:
        objective = Objective() if objective is None else objective
        if teacher is None:
            teacher = []
        models = [student, *(teacher if isinstance(teacher, Sequence) else [teacher])]
        sizes = _vocabulary_sizes(models, vocab_size, objective.shared_vocabulary)
        super().__init__(student, objective, optimizer, schedule, sizes[0], shifted_labels)
        teachers = [
            one if isinstance(one, Frozen) else Frozen(one, size, objective.fused)
            for one, size in zip(models[1:], sizes[1:], strict=True)
        ]
        self.teachers: Any = nn.ModuleList(teachers)
        self.intermediate: Any = nn.ModuleDict(objective.intermediate)
        self.transfer = TeacherForward() if transfer is None else transfer
        self.teacher_hash = teacher_hash
        for term in objective.intermediate.values():
            term.attach(student, teachers[0].model)

    @property
    def predictors(self) -> list[Predictor]:
        return [self.predict, *(teacher.predict for teacher in self.teachers)]

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.objective.weights.set_step(self.global_step, self.num_steps)
        batch = self.transfer.transform_batch(self, batch)
        with ExitStack() as recording:
            for term in self.intermediate.values():
                recording.enter_context(term.recording())
            student = self.predict(batch)
            teacher, teacher_mask = self.transfer.teacher_predictions(self.teachers, batch)
        labels, logs = batch["labels"], self.logs_now
        use_labels = "by_student" not in batch
        terms = self.objective.terms(
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


def _vocabulary_sizes(models: Sequence[Any], vocab_size: int | None, shared: bool) -> list[int]:
    """V of each model. Embeddings of one vocabulary may be padded to different sizes."""
    if vocab_size is not None:
        return [vocab_size] * len(models)
    sizes = [num_outputs(one.model if isinstance(one, Frozen) else one) for one in models]
    return [min(sizes)] * len(sizes) if shared else sizes
