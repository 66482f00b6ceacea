"""Both sides of a comparison: of the teacher all logits, or what a cache kept of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_distill.constants import LEAST
from lightning_distill.losses.ensemble import log_probabilities, mean_logits


class Target(Protocol):
    def compare(
        self, divergence: Callable[..., Tensor], student: "Student", temperature: float
    ) -> Tensor:
        """D(p_T, q_T) per position, [N]."""


class Student:
    """The student's side: logits [N, V], and what of its log-probabilities is asked for."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._log_q: dict[float, Tensor] = {}
        self._q: dict[float, Tensor] = {}

    def log_q(self, temperature: float) -> Tensor:
        """All of them, [N, V]."""
        if temperature not in self._log_q:
            self._log_q[temperature] = F.log_softmax(self._softened(temperature), dim=-1)
        return self._log_q[temperature]

    def of(self, ids: Tensor, temperature: float) -> Tensor:
        """Those of some tokens, [N, K]."""
        if temperature not in self._q:
            with torch.no_grad():
                self._q[temperature] = F.softmax(self._softened(temperature), dim=-1)
        return _Listed.apply(self.logits, ids, temperature, self._q[temperature])

    def _softened(self, temperature: float) -> Tensor:
        return self.logits if temperature == 1 else self.logits / temperature


class _Listed(torch.autograd.Function):
    """log q at some tokens, of logits z and q = softmax(z / T).

    Its gradient is made in one pass over [N, V], of which log_softmax and gather need three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float, q: Tensor) -> Tensor:
        ctx.save_for_backward(q, ids)
        ctx.temperature = temperature
        most = q.max(-1, keepdim=True)
        log_sum = logits.gather(-1, most.indices) / temperature - most.values.log()
        return logits.gather(-1, ids) / temperature - log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        q, ids = ctx.saved_tensors
        slope = slope / ctx.temperature
        gradient = q * -slope.sum(-1, keepdim=True)
        return gradient.scatter_add_(-1, ids, slope), None, None, None


@dataclass(frozen=True)
class Dense:
    """logits: one [N, V] a teacher, whose probabilities are averaged by `weights`."""

    logits: Sequence[Tensor]
    weights: Sequence[float]

    def compare(
        self, divergence: Callable[..., Tensor], student: Student, temperature: float
    ) -> Tensor:
        log_p = log_probabilities(self.logits, self.weights, temperature)
        return divergence(student.log_q(temperature), log_p)

    def mean_logits(self) -> Tensor:
        return mean_logits(self.logits, self.weights)


@dataclass(frozen=True)
class Sparse:
    """K tokens of each position: its largest, or a sample of all.

    ids, log_p: [..., K], log p of these tokens but for a constant of the position.
    log_z: for each temperature, the log of Σ p^(1/T) over the whole vocabulary, [...].
    inverse: [..., K] one over the expected number of times that a token is drawn, so that
    Σ inverse · p · f(token) expects Σ p · f over the vocabulary (Horvitz and Thompson 1952). None
    where the tokens are the largest, and the others count as one further token.
    """

    ids: Tensor
    log_p: Tensor
    log_z: Mapping[float, Tensor]
    inverse: Tensor | None

    def at(self, positions: Tensor | slice) -> "Sparse":
        """Those at some of the flattened positions: indices [N] or a slice."""
        return replace(
            self,
            ids=self.ids.flatten(0, -2)[positions],
            log_p=self.log_p.flatten(0, -2)[positions],
            log_z={T: z.flatten()[positions] for T, z in self.log_z.items()},
            inverse=None if self.inverse is None else self.inverse.flatten(0, -2)[positions],
        )

    def compare(
        self, divergence: Callable[..., Tensor], student: Student, temperature: float
    ) -> Tensor:
        """Of a sample the forward KL divergence, which alone is linear in p. Of the largest any.

        Unbiased at the temperatures of `log_z`; at others the sample normalises itself.
        """
        listed_q, listed_p = student.of(self.ids, temperature), self.log_p / temperature
        log_z = self.log_z.get(temperature)
        if self.inverse is None:
            listed_p = listed_p - (listed_p.logsumexp(-1) if log_z is None else log_z)[..., None]
            return divergence(_with_others(listed_q), _with_others(listed_p))
        weights = self.inverse * listed_p.exp()
        if log_z is None:
            log_z = weights.sum(-1).log()
        log_z = log_z[..., None]
        return ((listed_p - log_z - listed_q) * weights / log_z.exp()).sum(-1)


def _with_others(log_probs: Tensor) -> Tensor:
    """Log-probabilities [N, K] of some tokens to [N, K + 1] of these and all others as one."""
    others = -torch.expm1(log_probs.logsumexp(-1, keepdim=True))
    return torch.cat([log_probs, others.clamp(min=LEAST).log()], dim=-1)
