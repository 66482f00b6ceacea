"""The two sides of a divergence: the student's logits, and the teacher's as they are available."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_distill.constants import IGNORED, LEAST
from lightning_distill.losses.ensemble import log_probabilities, mean_logits
from lightning_distill.models.predictions import Predictions

Divergence = Callable[..., Tensor]  # (student, teacher) [N, V] to [N]


class StudentLogits:
    """The student's logits [N, V], and their log-probabilities, computed once per temperature."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._log_probs: dict[float, Tensor] = {}
        self._probs: dict[float, Tensor] = {}

    def log_probs(self, temperature: float) -> Tensor:
        """log q_T of the whole vocabulary, [N, V]."""
        if temperature not in self._log_probs:
            self._log_probs[temperature] = F.log_softmax(self.scaled(temperature), dim=-1)
        return self._log_probs[temperature]

    def log_probs_of(self, ids: Tensor, temperature: float) -> Tensor:
        """log q_T of the tokens `ids` [N, K], in the shape of `ids`."""
        if temperature not in self._probs:
            with torch.no_grad():
                self._probs[temperature] = F.softmax(self.scaled(temperature), dim=-1)
        return _LogProbsOf.apply(self.logits, ids, temperature, self._probs[temperature])

    def scaled(self, temperature: float) -> Tensor:
        return self.logits if temperature == 1 else self.logits / temperature


class _LogProbsOf(torch.autograd.Function):
    """log q_T at some tokens, from logits z and q_T = softmax(z / T).

    The backward pass reads [N, V] once; log_softmax followed by gather reads it three times.
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


class Target(Protocol):
    """The teacher's distribution at N positions."""

    def compare(self, divergence: Divergence, student: StudentLogits, temperature: float) -> Tensor:
        """D(p_T, q_T) per position, [N]."""

    def compare_logits(
        self, divergence: Divergence, student: StudentLogits, temperature: float
    ) -> Tensor:
        """D(y / T, z / T) per position, [N], for a divergence between logits y and z."""


class TeacherSignal(Protocol):
    """What a batch holds of its teachers, before logits are computed."""

    @property
    def predictions(self) -> Sequence[Predictions]:
        """One per teacher, whose logits `target` needs."""

    def at(self, positions: Tensor | slice) -> "TeacherSignal":
        """The signal at some of the flattened positions: indices [N], or a slice."""

    def target(self, logits: Sequence[Tensor], positions: slice) -> Target | None:
        """The target at `positions`; None without teachers. logits: of `predictions`, there."""


@dataclass(frozen=True)
class DenseSignal:
    """Hidden states or logits of each teacher; no predictions where no teacher is asked."""

    predictions: Sequence[Predictions]
    weights: Sequence[float]

    def at(self, positions: Tensor | slice) -> "DenseSignal":
        return replace(self, predictions=[one.at(positions) for one in self.predictions])

    def target(self, logits: Sequence[Tensor], positions: slice) -> "Dense | None":
        return Dense(logits, self.weights) if logits else None


@dataclass(frozen=True)
class Dense:
    """Logits [N, V] of each teacher. Their probabilities are averaged with `weights`."""

    logits: Sequence[Tensor]
    weights: Sequence[float]

    def compare(self, divergence: Divergence, student: StudentLogits, temperature: float) -> Tensor:
        log_p = log_probabilities(self.logits, self.weights, temperature)
        return divergence(student.log_probs(temperature), log_p)

    def compare_logits(
        self, divergence: Divergence, student: StudentLogits, temperature: float
    ) -> Tensor:
        mean = mean_logits(self.logits, self.weights)
        return divergence(student.logits / temperature, mean / temperature)


@dataclass(frozen=True)
class Sparse:
    """K tokens per position, as a cache stores them: the most probable ones, or a sample.

    ids, log_p: [..., K]; log_p is log p of these tokens up to a constant per position.
    log_z: for each temperature, log Σ p^(1/T) over the whole vocabulary, [...].
    inverse: [..., K], 1 / the expected number of times that a token is sampled, so that
    E[Σ inverse · p · f(token)] = Σ p · f over the vocabulary (Horvitz and Thompson 1952). None
    for the most probable tokens; the others then count as one further token.
    """

    ids: Tensor
    log_p: Tensor
    log_z: Mapping[float, Tensor]
    inverse: Tensor | None

    @property
    def predictions(self) -> Sequence[Predictions]:
        return ()

    def at(self, positions: Tensor | slice) -> "Sparse":
        return self._each(lambda x: x.flatten(0, -2)[positions], lambda z: z.flatten()[positions])

    def to(self, device: torch.device | str) -> "Sparse":
        """On another device."""
        return self._each(lambda x: x.to(device), lambda z: z.to(device))

    def _each(
        self, of_tokens: Callable[[Tensor], Tensor], of_positions: Callable[[Tensor], Tensor]
    ) -> "Sparse":
        return Sparse(
            of_tokens(self.ids),
            of_tokens(self.log_p),
            {T: of_positions(z) for T, z in self.log_z.items()},
            None if self.inverse is None else of_tokens(self.inverse),
        )

    def target(self, logits: Sequence[Tensor], positions: slice) -> "Sparse":
        return self.at(positions)

    def compare(self, divergence: Divergence, student: StudentLogits, temperature: float) -> Tensor:
        """For a sample always the forward KL divergence, the only one that is linear in p.

        Unbiased at the temperatures of `log_z`; at others the sample is normalized by its own sum.
        """
        log_q = student.log_probs_of(self.ids, temperature)
        log_p = self.log_p / temperature
        log_z = self.log_z.get(temperature)
        if self.inverse is None:
            log_p = log_p - (log_p.logsumexp(-1) if log_z is None else log_z)[..., None]
            return divergence(_with_others(log_q), _with_others(log_p))
        weights = self.inverse * log_p.exp()
        if log_z is None:
            log_z = weights.sum(-1).log()
        log_z = log_z[..., None]
        return ((log_p - log_z - log_q) * weights / log_z.exp()).sum(-1)

    def compare_logits(
        self, divergence: Divergence, student: StudentLogits, temperature: float
    ) -> Tensor:
        raise ValueError("a sparse target has no logits to compare")


def _with_others(log_probs: Tensor) -> Tensor:
    """Log-probabilities of K tokens [N, K] to [N, K + 1]: the last is that of all other tokens."""
    others = -torch.expm1(log_probs.logsumexp(-1, keepdim=True))
    return torch.cat([log_probs, others.clamp(min=LEAST).log()], dim=-1)


def target_positions(labels: Tensor) -> Tensor:
    """The indices of the flattened labels at which a token is predicted: [B, T] to [N]."""
    return (labels.flatten() != IGNORED).nonzero()[:, 0]
