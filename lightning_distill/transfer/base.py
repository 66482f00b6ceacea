"""The interface of a transfer: how the teacher's signal reaches the student (`transfer=`)."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_distill.data.tasks.base import DistillationData, Examples
from lightning_distill.losses.distributions import Sparse
from lightning_distill.losses.objective import Objective
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.predictions import Predictions
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.alignment import Aligner


@dataclass(frozen=True)
class Workspace:
    """Where a transfer runs the teacher, and keeps what it made.

    folder: of the run. make_trainer: called with a description, makes the trainer that runs the
    teacher.
    """

    store: Store
    folder: Path
    make_trainer: Callable[..., L.Trainer]


class Transfer:
    """What a transfer declares to the rest of the program, and what it does in a run.

    The methods are called in this order: `check`, `prepare`, `dataset`, and for each training batch
    `transform_batch` and `teacher_predictions`. As written here nothing is prepared, and the
    teacher's forward pass labels each batch.
    num_blocks: the transfer set is the first `num_blocks` examples of the train split (of a
        language model, blocks of text); None for all.
    """

    # The kind of artifact that is made from the whole transfer set before the student trains; None
    # for none. With one, the train split cannot be streamed, as a stream has no end.
    prepares: ClassVar[str | None] = None
    # The key of `made_from` that counts the units of that artifact, which it names: `num_blocks`.
    unit_count_key: ClassVar[str] = "transfer.num_blocks"
    # The student learns from text that the teacher generated, so that it depends on a teacher even
    # where the objective needs none (alpha = 0).
    supervises_by_text: ClassVar[bool] = False
    # The teacher stays in memory while the student trains.
    holds_teacher: ClassVar[bool] = True

    def __init__(self, num_blocks: int | None) -> None:
        self.num_blocks = num_blocks
        self.aligner: Aligner | None = None

    @property
    def accepts_top_k(self) -> bool:
        """Whether the k largest probabilities suffice; an API teacher returns no others."""
        return False

    def dry_run_settings(self, batch_size: int, api_teacher: bool) -> dict[str, Any]:
        """The settings to change for a small version of the same transfer, which is profiled."""
        return {}

    def units_to_prepare(self, data: DistillationData, teacher_data: DistillationData) -> int:
        """How many blocks the teacher labels, or sequences it generates, in `prepare`."""
        return 0

    def expected_examples(self, data: DistillationData, teacher_data: DistillationData) -> int:
        """The size of `dataset`, or about that where it is known only when it is prepared."""
        return self.num_examples(data.transfer_set())

    def made_from(self, data: DistillationData, teacher: Teacher) -> dict[str, Any]:
        """Everything that determines the content of the artifact, see `prepares`."""
        raise NotImplementedError

    def check(
        self, objective: Objective, data: DistillationData, teacher_data: DistillationData
    ) -> None:
        """Raises ConfigError where this transfer cannot supply what the objective needs.

        objective: with the weights of its teachers.
        """

    def check_cache(self, data: DistillationData, teacher: Teacher) -> None:
        """Raises ConfigError where `transfer.cache` was made for other settings or is damaged."""

    def prepare(self, data: DistillationData, teacher: Teacher, workspace: Workspace) -> float:
        """Makes what the student's training needs. Returns the seconds that this took now."""
        if teacher.data is not data:
            self.aligner = Aligner(data.tokenizer, teacher.data.tokenizer, teacher.max_positions)
        return 0.0

    def num_examples(self, examples: Examples) -> int:
        """The size of the transfer set, of the examples that it is taken from."""
        return min(self.num_blocks or len(examples), len(examples))

    def dataset(self, data: DistillationData) -> Dataset[dict[str, Any]]:
        """What the student trains on."""
        examples: Any = data.transfer_set()
        has_end = isinstance(examples, Sized)  # a stream has none
        return Subset(examples, range(self.num_examples(examples))) if has_end else examples

    def transform_batch(self, module: TrainedModule, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch that student and teacher read instead."""
        return batch

    def teacher_predictions(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]:
        """Each teacher's predictions [B, T, ...] at the student's positions, and a mask.

        The mask, [B, T], is True where the predictions are known; None means everywhere. With a
        tokenizer of its own, the teacher is known only where both have read the same text.
        """
        if self.aligner is None:
            return [teacher(batch) for teacher in teachers], None
        teacher_batch, where = self.aligner(batch)
        mask, positions = where >= 0, where.clamp(min=0)
        return [teacher(teacher_batch).gather(positions) for teacher in teachers], mask
