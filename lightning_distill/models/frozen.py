"""The teacher, out of harm's way."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.models.head import Predictions, Predictor


class Frozen(nn.Module):
    """A model that can be asked and moved, and never changed or saved.

    It is kept out of PyTorch's list of sub-modules, so whatever walks that list does not meet it:
    Lightning's `train()` would switch its dropout back on, the optimizer would take its weights,
    DDP would put them in its buckets, and every checkpoint would hold a copy of them. Only the
    walk that moves tensors between devices and dtypes is passed on.
    """

    model: Any

    def __init__(self, model: PreTrainedModel, vocab_size: int, split: bool = True) -> None:
        """vocab_size, split: see `Predictor`."""
        super().__init__()
        object.__setattr__(self, "model", model.eval().requires_grad_(False))
        self.predict = Predictor(model, vocab_size, split)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> Predictions:
        return self.predict(batch)

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen":
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)
