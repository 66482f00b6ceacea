"""The teacher, out of harm's way."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.models.output_head import Predictions, Predictor


class Frozen(nn.Module):
    """A model that can be asked and moved, and never changed or saved.

    It is kept out of PyTorch's list of sub-modules, so whatever walks that list does not meet it:
    Lightning's `train()` would switch its dropout back on, the optimizer would take its weights,
    DDP would put them in its buckets, and every checkpoint would hold a copy of them. Only the
    walk that moves tensors between devices and dtypes is passed on.
    """

    model: Any
    head: Any = None  # that moves, where the model stays

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        split: bool = True,
        device: str | None = None,
    ) -> None:
        """vocab_size, split: see `Predictor`. device: where the model stays while others move; what
        it says is handed over to where it was asked, with a copy of its head that moves along."""
        super().__init__()
        object.__setattr__(self, "model", model.eval().requires_grad_(False))
        self.predict = Predictor(model, vocab_size, split)
        self.place = None if device is None else torch.device(device)
        if self.place is not None:
            model.to(self.place)  # type: ignore[arg-type]
            if head := self.predict.head:
                moves = replace(head, linear=copy.deepcopy(head.linear))
                object.__setattr__(self, "head", moves)

    @property
    def name(self) -> str:
        """Where its weights were read."""
        return str(self.model.name_or_path)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> Predictions:
        if self.place is None:
            return self.predict(batch)
        asked_at = batch["labels"].device
        tensors = {name: x for name, x in batch.items() if isinstance(x, Tensor)}
        said = self.predict({name: x.to(self.place) for name, x in tensors.items()})
        return Predictions(said.states.to(asked_at), self.head, said.vocab_size)

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen":
        if self.place is None:
            self.model._apply(fn, recurse)
        elif self.head:
            self.head.linear._apply(fn, recurse)
        return super()._apply(fn, recurse)
