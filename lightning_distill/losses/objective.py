"""The objective that every loss of the package is used in.

    L = hard_weight · H(t, q)  +  alpha · T² · D(p_T, q_T)

p and q are the teacher's and the student's next-token distributions, p_T and q_T the same with
logits divided by the temperature T, t the ground truth, D a divergence (Hinton et al. 2015,
section 2, where D is the cross-entropy; ours is the KL divergence, with the same gradients).
"""

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_distill import ConfigError
from lightning_distill.data.packing import IGNORED
from lightning_distill.losses.forward_kl import forward_kl

HARD_TARGETS = ("labels", "teacher")


@dataclass(frozen=True)
class Terms:
    """Sums over the tokens of one micro-batch, so that a global batch can be averaged exactly."""

    total: Tensor  # hard_weight · hard + alpha · T² · soft, the part to differentiate
    hard: Tensor  # H(t, q), or KL(p ‖ q) with hard_target=teacher
    soft: Tensor  # T² · D(p_T, q_T)
    tokens: Tensor  # how many were summed


class Objective:
    """Mixes the hard and the soft target.

    divergence: (student, teacher) log-probabilities [B, T, V] to [B, T]; called with `settings`
        too, the keys of a loss's config that only it needs.
    temperature: above 0. alpha: weight of the teacher's term, from 0.
    hard_weight: weight of H(t, q), or `complement` for 1 − alpha.
    hard_target: t is the text itself (`labels`) or the teacher's distribution (`teacher`).
    vocab_size: only the tokenizer's vocabulary is compared. Models whose embeddings were padded,
        each to its own number of rows, still share its first ids.

    Raises ConfigError naming every setting that is out of range.
    """

    def __init__(
        self,
        divergence: Callable[..., Tensor],
        temperature: float,
        alpha: float,
        hard_weight: float | str,
        hard_target: str,
        vocab_size: int | None = None,
        **settings: Any,
    ) -> None:
        problems = list(_problems(temperature, alpha, hard_weight, hard_target))
        known = list(inspect.signature(divergence).parameters)[2:]
        problems += [f"loss.{s} is not a setting of this loss" for s in settings if s not in known]
        if problems:
            raise ConfigError("; ".join(problems) + ".")
        self.divergence = divergence
        self.settings = settings
        self.temperature = float(temperature)
        self.alpha = float(alpha)
        self.hard_weight = 1 - self.alpha if hard_weight == "complement" else float(hard_weight)
        self.hard_target = hard_target
        self.vocab_size = vocab_size

    @property
    def needs_teacher(self) -> bool:
        return self.alpha > 0 or (self.hard_target == "teacher" and self.hard_weight > 0)

    def __call__(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Terms:
        """student: logits [B, T, V], teacher: [B, T, V'] or None, labels: [B, T], -100 left out.

        Positions correspond: labels[b, t] is the token that logits[b, t] predict.
        """
        zero = student.new_zeros((), dtype=torch.float32)
        hard = self._hard(student, teacher, labels) if self.hard_weight else zero
        soft = self._soft(student, teacher, labels) if self.alpha else zero
        total = self.hard_weight * hard + self.alpha * soft
        return Terms(total, hard.detach(), soft.detach(), (labels != IGNORED).sum())

    def describe(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        """What is worth a look now and then, per token, beside the terms themselves.

        hard_gradient_norm, soft_gradient_norm: of each weighted term with respect to the
        student's logits, which shows the balance that alpha and T really make.
        kl: KL(p ‖ q) at temperature 1. nll: H(labels, q).
        """
        with torch.no_grad():
            nll, tokens = self.nll(student, labels)
            found = {"nll": nll / tokens}
            if teacher is not None:
                found["kl"] = self._divergence(forward_kl, student, teacher, labels, 1.0) / tokens
        logits = student.detach().requires_grad_()
        terms = {"hard": (self.hard_weight, self._hard), "soft": (self.alpha, self._soft)}
        for name, (weight, term) in terms.items():
            if weight:
                with torch.enable_grad():
                    total = term(logits, teacher, labels)
                (gradient,) = torch.autograd.grad(total, logits)
                found[f"{name}_gradient_norm"] = weight * gradient.norm() / tokens
        return found

    def nll(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """H(labels, q) in nats, summed over the tokens, and their number (at least 1)."""
        nll = F.cross_entropy(
            self.cut(logits).flatten(0, -2),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        return nll, (labels != IGNORED).sum().clamp(min=1)

    def _hard(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        if self.hard_target == "labels":
            return self.nll(student, labels)[0]
        return self._divergence(forward_kl, student, teacher, labels, 1.0)

    def _soft(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        T = self.temperature
        # The gradient of a softened divergence falls with 1 / T²; this restores its size.
        return T**2 * self._divergence(self.divergence, student, teacher, labels, T, self.settings)

    def _divergence(
        self,
        divergence: Callable[..., Tensor],
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        temperature: float,
        settings: dict[str, Any] | None = None,
    ) -> Tensor:
        assert teacher is not None
        q = F.log_softmax(self.cut(student) / temperature, dim=-1)
        p = F.log_softmax(self.cut(teacher) / temperature, dim=-1)
        values = divergence(q, p, **(settings or {}))
        return values.masked_fill(labels == IGNORED, 0).sum()

    def cut(self, logits: Tensor) -> Tensor:
        """Logits of the tokenizer's vocabulary, in at least 32 bits."""
        if self.vocab_size is not None:
            logits = logits[..., : self.vocab_size]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _problems(temperature: Any, alpha: Any, hard_weight: Any, hard_target: Any) -> Any:
    if not _number(temperature) or temperature <= 0:
        yield f"loss.temperature={temperature} must be a number above 0"
    if not _number(alpha) or alpha < 0:
        yield f"loss.alpha={alpha} must be a number from 0"
    if hard_weight == "complement":
        if _number(alpha) and alpha > 1:
            yield f"loss.hard_weight=complement is 1 − alpha: loss.alpha={alpha} must be at most 1"
    elif not _number(hard_weight) or hard_weight < 0:
        yield f"loss.hard_weight={hard_weight} must be a number from 0, or complement"
    elif hard_weight == 0 and alpha == 0:
        yield "loss.hard_weight=0 with loss.alpha=0 leaves nothing to learn from"
    if hard_target not in HARD_TARGETS:
        near = difflib.get_close_matches(str(hard_target), HARD_TARGETS, 1, 0.3) or HARD_TARGETS
        yield f"loss.hard_target={hard_target} does not exist; did you mean {near[0]}? " + (
            f"It is one of {', '.join(HARD_TARGETS)}"
        )


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)
