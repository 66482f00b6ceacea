"""A frozen model, such as a teacher while its student trains."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_distill.models.output_head import INPUTS, Predictor
from lightning_distill.models.predictions import Predictions

# Hidden states of a forward pass on the CPU, [tokens, D]. The allocator returns larger activations
# to the system and has them zeroed again by every layer, which halves the speed of a wide model.
CPU_STATES = 2**20


class Frozen(nn.Module):
    """A model that is called and moved between devices, and never changed or saved.

    The model is kept out of PyTorch's list of sub-modules. From there, Lightning's `train()` would
    switch its dropout back on, the optimizer would take its weights, DDP would put them in its
    buckets, and every checkpoint would hold a copy. Only the traversal that moves tensors between
    devices and dtypes is passed on.
    """

    model: Any
    head: Any = None  # the copy that moves, with a model that does not

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        split: bool = True,
        device: str | None = None,
    ) -> None:
        """vocab_size, split: see `Predictor`. device: where the model stays; its predictions move
        to the batch's device, with a copy of its head there. None to move the model itself."""
        super().__init__()
        object.__setattr__(self, "model", model.eval().requires_grad_(False))
        self.predict = Predictor(model, vocab_size, split)
        self.device = None if device is None else torch.device(device)
        if self.device is not None:
            model.to(self.device)  # type: ignore[arg-type]
            if head := self.predict.head:
                moving_head = replace(head, linear=copy.deepcopy(head.linear))
                object.__setattr__(self, "head", moving_head)

    @property
    def name(self) -> str:
        """Where its weights were loaded from."""
        return str(self.model.name_or_path)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> Predictions:
        if self.device is None:
            return self._predict_in_parts(batch)
        batch_device = batch["labels"].device
        tensors = {name: x for name, x in batch.items() if isinstance(x, Tensor)}
        predictions = self.predict({name: x.to(self.device) for name, x in tensors.items()})
        states = predictions.states.to(batch_device)
        return Predictions(states, self.head, predictions.vocab_size)

    def _predict_in_parts(self, batch: dict[str, Tensor]) -> Predictions:
        """A few rows at a time, see `CPU_STATES`. All devices call a sharded model equally often,
        so that it reads a batch at once."""
        rows = self._rows(batch.get("input_ids"))
        if rows is None or isinstance(self.model, FSDPModule):
            return self.predict(batch)
        tensors = {name: batch[name].split(rows) for name in (*INPUTS, "labels") if name in batch}
        parts = [
            self.predict(dict(zip(tensors, part, strict=True)))
            for part in zip(*tensors.values(), strict=True)
        ]
        return replace(parts[0], states=torch.cat([part.states for part in parts]))

    def _rows(self, ids: Tensor | None) -> int | None:
        """How many rows of `ids` [B, T] to read at a time; None for all."""
        width = getattr(self.model.config.get_text_config(), "hidden_size", None)
        if ids is None or ids.device.type != "cpu" or not width:
            return None
        rows = max(1, CPU_STATES // (width * ids.shape[1]))
        return rows if rows < len(ids) else None

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen":
        if self.device is None:
            self.model._apply(fn, recurse)
        elif self.head:
            self.head.linear._apply(fn, recurse)
        return super()._apply(fn, recurse)
