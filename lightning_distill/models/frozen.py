"""The teacher, out of harm's way."""

from typing import Any

from torch import nn


class Frozen(nn.Module):
    """A model that can be called and moved, and never changed or saved.

    It is kept out of PyTorch's list of sub-modules, so whatever walks that list does not meet it:
    Lightning's `train()` would switch its dropout back on, the optimizer would take its weights,
    DDP would put them in its buckets, and every checkpoint would hold a copy of them. Only the
    walk that moves tensors between devices and dtypes is passed on.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "model", model.eval().requires_grad_(False))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen":
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)
