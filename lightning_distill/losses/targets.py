"""The teacher's side of a comparison: all of its logits, or what a cache kept of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lightning_distill.losses.ensemble import log_probabilities, mean_logits

LEAST = 1e-7  # probability of all tokens that are not listed: what 32 bits can tell from 1


class Target(Protocol):
    def compare(
        self, divergence: Callable[..., Tensor], log_q: Tensor, temperature: float
    ) -> Tensor:
        """D(p_T, q_T) per position. log_q: the student's log-probabilities at T, [N, V]; to [N]."""


@dataclass(frozen=True)
class Dense:
    """logits: one [N, V] a teacher, whose probabilities are averaged by `weights`."""

    logits: Sequence[Tensor]
    weights: Sequence[float]

    def compare(
        self, divergence: Callable[..., Tensor], log_q: Tensor, temperature: float
    ) -> Tensor:
        return divergence(log_q, log_probabilities(self.logits, self.weights, temperature))

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
        self, divergence: Callable[..., Tensor], log_q: Tensor, temperature: float
    ) -> Tensor:
        """Of a sample the forward KL divergence, which alone is linear in p. Of the largest any.

        Unbiased at the temperatures of `log_z`; at others the sample normalises itself.
        """
        listed_q, listed_p = log_q.gather(-1, self.ids), self.log_p / temperature
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
