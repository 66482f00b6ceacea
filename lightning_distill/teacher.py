"""The big model, trained on the text itself."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_distill.losses import Objective, forward_kl
from lightning_distill.training import LanguageModule


class TeacherModule(LanguageModule):
    """A language model that learns from labels alone: the objective with alpha = 0."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
    ) -> None:
        labels_only = Objective(
            forward_kl,
            temperature=1.0,
            alpha=0.0,
            hard_weight=1.0,
            hard_target="labels",
            vocab_size=vocab_size,
        )
        super().__init__(model, labels_only, optimizer, schedule)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self.step(self(batch), None, batch["labels"])
