"""Predictions of a model, as hidden states and an output head, or as logits.

Logits are as wide as the vocabulary, which takes much memory. They are computed where they are
needed, for a few positions at a time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXCLUDED = -1e30  # the logit of a token that a model excludes


@dataclass(frozen=True)
class Head:
    """softcap · tanh(scale · (W h + b) / softcap), or scale · (W h + b) without a softcap.

    linear: W [V', D] and, where there is one, b [V'].
    """

    linear: nn.Linear
    scale: float
    softcap: float | None

    def finish(self, products: Tensor) -> Tensor:
        """From W h + b to logits."""
        if self.scale != 1:
            products = products * self.scale
        if self.softcap:
            products = self.softcap * torch.tanh(products / self.softcap)
        return products


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, with logits computed on demand.

    states: last hidden states [..., D], or logits [..., V'] where there is no head.
    vocab_size: V of the tokenizer, or the number of classes. Logits beyond it, from the rows of a
        padded embedding, are left out.
    """

    states: Tensor
    head: Head | None
    vocab_size: int

    def logits(self) -> Tensor:
        """[..., V], in float32 at least."""
        if self.head is None:
            logits = self.states[..., : self.vocab_size]
            return without_infinities(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        weight, bias = self.output()
        products = F.linear(self.states, weight, bias)
        return self.head.finish(products.to(torch.promote_types(products.dtype, torch.float32)))

    def output(self) -> tuple[Tensor, Tensor | None]:
        """The output matrix W [V, D] and the bias b [V], where the head has one."""
        assert self.head is not None
        weight: Tensor = self.head.linear.weight
        bias: Tensor | None = self.head.linear.bias
        if len(weight) > self.vocab_size:  # a slice of all rows would still cost a copy
            weight = weight[: self.vocab_size]
            bias = None if bias is None else bias[: self.vocab_size]
        return weight, None if bias is None else without_infinities(bias)

    def to(self, device: torch.device | str) -> "Predictions":
        """On another device, to which the head's weights move too."""
        if self.head is not None:
            self.head.linear.to(device)
        return Predictions(self.states.to(device), self.head, self.vocab_size)

    def at(self, positions: Tensor | slice) -> "Predictions":
        """At some of the flattened positions: indices [N] or a slice."""
        states = self.states.flatten(0, -2)[positions]
        return Predictions(states, self.head, self.vocab_size)

    def gather(self, where: Tensor) -> "Predictions":
        """At other positions of the same rows: [B, T', ...] and indices [B, T] to [B, T, ...]."""
        index = where[..., None].expand(-1, -1, self.states.shape[-1])
        return Predictions(self.states.gather(1, index), self.head, self.vocab_size)


def without_infinities(logits: Tensor) -> Tensor:
    """With a large negative number in place of −inf, by which a model excludes a token.

    Its probability is 0 either way, and 0 · log 0 is 0 instead of NaN. NaN stays.
    """
    return logits.clamp(min=max(EXCLUDED, torch.finfo(logits.dtype).min))
