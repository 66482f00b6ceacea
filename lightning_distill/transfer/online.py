from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_distill.data.tasks.base import DistillationData, Examples
from lightning_distill.losses.distributions import Sparse
from lightning_distill.losses.objective import Objective
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.output_head import Predictions
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.alignment import Aligner


class Online:
    """The teacher labels each batch as the student meets it.

    Nothing is stored, and every step pays for the teacher's forward pass. The other transfers
    change what they do otherwise.
    num_blocks: the transfer set is the first so many examples of the train split (of a language
    model, blocks of text); None for all.
    """

    always_asks = False  # the teacher, whatever the objective
    holds_teacher = True  # during the student's training

    def __init__(self, num_blocks: int | None) -> None:
        self.num_blocks = num_blocks
        self.aligner: Aligner | None = None

    def check(
        self,
        objective: Objective,
        data: DistillationData,
        teacher_data: DistillationData,
        teachers: int,
    ) -> None:
        """Raises ConfigError where the objective asks for what this transfer cannot bring."""

    def prepare(
        self,
        data: DistillationData,
        teacher: Teacher,
        store: Store,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> float:
        """What has to be there before the student trains; the seconds that it took now.

        make_trainer: what drives the teacher over the data. folder: of the run.
        """
        if teacher.data is not data:
            self.aligner = Aligner(data.tokenizer, teacher.data.tokenizer, teacher.positions)
        return 0.0

    def ahead(self, data: DistillationData, teacher_data: DistillationData) -> int:
        """How many blocks the teacher labels, or sequences it writes, before a student trains."""
        return 0

    def made_from(
        self, data: DistillationData, teacher: Teacher
    ) -> tuple[str, dict[str, Any]] | None:
        """The kind of artifact that is prepared, and everything that decides its content."""
        return None

    def check_cache(self, data: DistillationData, teacher: Teacher) -> None:
        """Raises ConfigError where the cache that the user names is another's."""

    def count(self, examples: Examples) -> int:
        return min(self.num_blocks or len(examples), len(examples))

    def dataset(self, data: DistillationData) -> Dataset[dict[str, Any]]:
        """What the student trains on."""
        examples: Any = data.transfer_set()
        # Of a stream no number can be chosen: it has no end.
        counted = isinstance(examples, Sized)
        return Subset(examples, range(self.count(examples))) if counted else examples

    def compose(self, module: TrainedModule, batch: dict[str, Any]) -> dict[str, Any]:
        """What student and teacher read in place of a batch."""
        return batch

    def label(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]:
        """Each teacher's predictions [B, T, ...] for the student's positions of a batch.

        Also where they are known: [B, T], or None if that is everywhere. With tokens of its own,
        the teacher is only known where both have read the same text.
        """
        if self.aligner is None:
            return [teacher(batch) for teacher in teachers], None
        theirs, where = self.aligner(batch)
        return [teacher(theirs).gather(where.clamp(min=0)) for teacher in teachers], where >= 0
