from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_distill.models import Frozen
from lightning_distill.models.head import Predictions
from lightning_distill.transfer.alignment import Aligner


class Online:
    """The teacher labels each batch as the student meets it.

    Nothing is stored, and every step pays for the teacher's forward pass.
    num_blocks: the transfer set is the first so many blocks of the train split; None for all.
    """

    def __init__(self, num_blocks: int | None) -> None:
        self.num_blocks = num_blocks
        self.aligner: Aligner | None = None

    def translate(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        limit: int | None,
    ) -> None:
        """Has the teacher read the text in tokens of its own, at most `limit` of them."""
        self.aligner = Aligner(student, teacher, limit)

    def label(
        self, teachers: Sequence[Frozen], batch: dict[str, Tensor]
    ) -> tuple[list[Predictions], Tensor | None]:
        """Each teacher's predictions [B, T, ...] for the student's positions of a batch.

        Also where they are known: [B, T], or None if that is everywhere. With tokens of its own,
        the teacher is only known where both have read the same text.
        """
        if self.aligner is None:
            return [teacher(batch) for teacher in teachers], None
        theirs, where = self.aligner(batch)
        return [teacher(theirs).gather(where.clamp(min=0)) for teacher in teachers], where >= 0
