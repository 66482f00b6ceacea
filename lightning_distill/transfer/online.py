import torch
from torch import Tensor

from lightning_distill.models.frozen import Frozen


class Online:
    """The teacher labels each batch as the student meets it.

    Nothing is stored, and every step pays for the teacher's forward pass.
    num_blocks: the transfer set is the first so many blocks of the train split; None for all.
    """

    def __init__(self, num_blocks: int | None) -> None:
        self.num_blocks = num_blocks

    @torch.no_grad()
    def logits(self, teacher: Frozen, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's logits for a batch: [B, T, V]."""
        return teacher(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
