"""The objective that every loss of the package is used in.

    L = hard_weight · H(t, q)  +  alpha · T² · D(p_T, q_T)

p and q are the teacher's and the student's next-token distributions, p_T and q_T the same with
logits divided by the temperature T, t the ground truth, D a divergence (Hinton et al. 2015,
section 2, where D is the cross-entropy; ours is the KL divergence, with the same gradients).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_distill.config.validation import require
from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.losses.chunked import chunked
from lightning_distill.losses.distributions import Dense, Sparse, Student, Target
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.intermediate import IntermediateLoss
from lightning_distill.losses.schedules import LossWeights
from lightning_distill.models.output_head import Predictions

HARD_TARGETS = ("labels", "teacher")
COMPARED = ("probabilities", "logits")


@dataclass(frozen=True)
class Terms:
    """Sums over the tokens of one micro-batch, so that a global batch can be averaged exactly."""

    total: Tensor  # Σ weight · part: what to differentiate
    parts: dict[str, Tensor]  # each term without its weight
    tokens: Tensor  # how many were summed
    details: dict[str, Tensor] = field(default_factory=dict)  # averages over them, for the log

    def plus(self, name: str, term: IntermediateLoss, value: Tensor, details: bool) -> "Terms":
        """With a term inside the network, and the norm of its gradient if details are wanted."""
        norm = {f"{name}_gradient_norm": term.gradient_norm(value) / self.tokens} if details else {}
        return Terms(
            self.total + term.weight * value,
            self.parts | {name: value.detach()},
            self.tokens,
            self.details | norm,
        )


class Objective:
    """Mixes the hard and the soft target.

    divergence: (student, teacher) log-probabilities [N, V] to [N]; called with `settings` too,
        the keys of a loss's config that only it needs.
    temperature: above 0. alpha: weight of the teacher's term, from 0. Each is a number, or a
        schedule over the steps: {shape: cosine, start: 4, end: 1} (`losses/schedules.py`).
    hard_weight: weight of H(t, q), or `complement` for 1 − alpha.
    hard_target: t is the text itself (`labels`) or the teacher's distribution (`teacher`).
    label_smoothing: share of t, from 0 to below 1, that is spread evenly over the vocabulary where
        t is the text (Szegedy et al. 2016, section 7): what of a teacher needs no teacher.
    fused: never hold all logits, where the models allow that (`losses/chunked.py`).
    hidden, relations: terms inside the network, each with a weight of its own.
    compares: `logits` if the divergence takes logits / T in place of log-probabilities.
    shared_vocabulary: false if the divergence takes any two vocabularies, [N, V] and [N, V'].

    Raises ConfigError naming every setting that is out of range.
    """

    def __init__(
        self,
        divergence: Callable[..., Tensor],
        temperature: float | Mapping[str, Any],
        alpha: float | Mapping[str, Any],
        hard_weight: float | str,
        hard_target: str,
        label_smoothing: float = 0.0,
        fused: bool = True,
        hidden: Any = None,
        relations: Any = None,
        compares: str = "probabilities",
        shared_vocabulary: bool = True,
        **settings: Any,
    ) -> None:
        self.divergence = divergence
        self.settings = settings
        self.hard_target = hard_target
        self.label_smoothing = label_smoothing
        self.fused = fused
        self.inside: dict[str, Any] = {
            name: term
            for name, term in (("hidden", hidden), ("relations", relations))
            if term is not None and term.weight
        }
        self.compares = compares
        self.shared_vocabulary = shared_vocabulary
        self.teacher_weights: Sequence[float] = (1.0,)
        self.balance = LossWeights(temperature, alpha, hard_weight)
        if problems := [*self._problems(), *self._problems_of_divergence()]:
            raise ConfigError("; ".join(problems) + ".")

    @property
    def needs_teacher(self) -> bool:
        """At any step."""
        return self.compares_predictions or bool(self.inside)

    @property
    def compares_predictions(self) -> bool:
        """With the teacher's, at any step."""
        hard = self.hard_target == "teacher" and self.balance.uses("hard")
        return hard or self.balance.uses("soft")

    def __call__(
        self,
        student: Predictions,
        teachers: Sequence[Predictions] | Sparse,
        labels: Tensor,
        known: Tensor | None = None,
        truth: bool = True,
        details: bool = False,
        kept: Tensor | None = None,
    ) -> Terms:
        """Of a batch: student and each teacher [B, T, ...], labels: [B, T], -100 left out.

        Positions correspond: labels[b, t] is the token that the states at [b, t] predict.
        known: [B, T], where the teachers can be compared with the student; None for everywhere.
        truth: false where the labels are the student's own words, which it need not learn.
        details: also nll; kl, KL(p ‖ q) at T = 1; the share of tokens known; and the norms of the
        gradients of both weighted terms with respect to the student's logits, which show the
        balance that alpha and T really make.
        kept: [N], which of the flattened labels count, where that is known. To find it out, a
        processor waits for its GPU.
        """
        if kept is None:
            kept = counted(labels)
        targets = labels.flatten()[kept] if truth else None
        compared = None if known is None else known.flatten()[kept]
        student = student.at(kept)
        stored = teachers.at(kept) if isinstance(teachers, Sparse) else None
        dense = [] if isinstance(teachers, Sparse) else [t.at(kept) for t in teachers]

        def score(z: Tensor, ys: list[Tensor], at: slice) -> tuple[Tensor, dict[str, Tensor]]:
            where = None if compared is None else compared[at]
            target = stored.at(at) if stored else Dense(ys, self.teacher_weights) if ys else None
            said = None if targets is None else targets[at]
            return self.score(z, target, said, where, details)

        if self.fused and student.head is not None and all(t.head for t in dense):
            total, sums = chunked(student, dense, score)
        else:
            total, sums = score(student.logits(), [t.logits() for t in dense], slice(None))
        tokens = torch.as_tensor(len(kept), device=labels.device)
        parts = {name: sums.pop(name) for name in ("hard", "soft") if name in sums}
        return Terms(total, parts, tokens, _averages(sums, max(1, len(kept))))

    def score(
        self,
        student: Tensor,
        teacher: Target | None,
        labels: Tensor | None,
        known: Tensor | None,
        details: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over N positions, and what it is made of.

        student: logits [N, V], labels, known: [N].
        """
        # Sums over a vocabulary are not for 16 bits, which autocast would choose for some.
        with torch.autocast(student.device.type, enabled=False):
            weights = self.balance.weights
            terms = self.terms(student, teacher, labels, known)
            total = sum((weights[name] * x for name, x in terms.items()), student.new_zeros(()))
            sums = {name: x.detach() for name, x in terms.items()}
            if details:
                sums |= self.details(student, teacher, labels, known)
                for name, x in terms.items():
                    (slope,) = torch.autograd.grad(weights[name] * x, student, retain_graph=True)
                    sums[f"{name}_gradient_square"] = slope.square().sum()
        return total, sums

    def terms(
        self, student: Tensor, teacher: Target | None, labels: Tensor | None, known: Tensor | None
    ) -> dict[str, Tensor]:
        """Sums over N positions of each term that is ever weighed, without its weight.

        hard: H(t, q), or KL(p ‖ q) with hard_target=teacher. soft: T² · D(p_T, q_T).
        """
        found = {}
        T, (hard, soft) = self.balance.temperature, map(self.balance.uses, ("hard", "soft"))
        own = Student(student)
        if hard and self.hard_target == "labels" and labels is not None:
            found["hard"] = -own.of(labels[:, None], 1.0).sum()
            if even := self.label_smoothing:
                evenly = -own.log_q(1.0).mean(-1).sum()
                found["hard"] = (1 - even) * found["hard"] + even * evenly
        elif hard and self.hard_target == "teacher" and teacher:
            found["hard"] = _sum(teacher.compare(forward_kl, own, 1.0), known)
        if soft and teacher:
            # The gradient of a softened divergence falls with 1 / T²; this restores it.
            found["soft"] = T**2 * _sum(self._softened(own, teacher), known)
        return found

    def _softened(self, student: Student, teacher: Target) -> Tensor:
        """D(p_T, q_T) per position, [N]."""
        T, divergence = self.balance.temperature, partial(self.divergence, **self.settings)
        if self.compares == "logits":
            assert isinstance(teacher, Dense)
            return divergence(student.logits / T, teacher.mean_logits() / T)
        return teacher.compare(divergence, student, T)

    @torch.no_grad()
    def details(
        self, student: Tensor, teacher: Target | None, labels: Tensor | None, known: Tensor | None
    ) -> dict[str, Tensor]:
        own, found = Student(student), {}
        if labels is not None:
            found["nll"] = -own.of(labels[:, None], 1.0).sum()
        if teacher and self.shared_vocabulary:
            found["kl"] = _sum(teacher.compare(forward_kl, own, 1.0), known)
        if known is not None:
            found["known"] = known.sum()
        return found

    def _problems(self) -> Iterator[str]:
        yield from self.balance.problems
        if not self.balance.problems and not (
            self.balance.uses("hard") or self.balance.uses("soft") or self.inside
        ):
            yield "loss.hard_weight=0 with loss.alpha=0 leaves nothing to learn from"
        if self.hard_target not in HARD_TARGETS:
            yield str(unknown_name("loss.hard_target", self.hard_target, HARD_TARGETS)).rstrip(".")
        elif self.hard_target == "teacher" and not self.shared_vocabulary:
            yield "loss.hard_target=teacher needs a loss for one shared vocabulary"
        try:
            require("loss.label_smoothing", self.label_smoothing, 0, 1, below=True)
        except ConfigError as error:
            yield str(error).rstrip(".")
        if self.label_smoothing and self.hard_target == "teacher":
            yield "loss.label_smoothing is of labels; set it to 0 with loss.hard_target=teacher"
        if self.compares not in COMPARED:
            yield f"loss.compares={self.compares} must be one of {', '.join(COMPARED)}"

    def _problems_of_divergence(self) -> Iterator[str]:
        known = list(inspect.signature(self.divergence).parameters)[2:]
        if unknown := [name for name in self.settings if name not in known]:
            yield from (f"loss.{name} is not a setting of this loss" for name in unknown)
            return
        # Tried on two tokens, so that what it refuses is refused before anything is trained.
        q, p = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.6, 0.4]]).log()
        try:
            shape = self.divergence(q, p, **self.settings).shape
        except ConfigError as error:
            yield str(error).rstrip(".")
        else:
            if shape != (1,):
                yield f"the loss makes {list(shape)} of [N, V] = [1, 2]; it must make [1], [N]"


def counted(labels: Tensor) -> Tensor:
    """Which of the flattened labels are there to be predicted: [B, T] to [N]."""
    return (labels.flatten() != IGNORED).nonzero()[:, 0]


def nll(student: Predictions, labels: Tensor) -> tuple[Tensor, Tensor]:
    """H(labels, q) in nats, summed over the tokens that count, and their number."""
    terms = LABELS_ALONE(student, [], labels)
    return terms.total, terms.tokens


def _averages(sums: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """A token's share of each sum; the norm where a sum is of squares."""
    return {
        name.replace("_square", "_norm"): (x.sqrt() if name.endswith("_square") else x) / tokens
        for name, x in sums.items()
    }


def _sum(values: Tensor, known: Tensor | None) -> Tensor:
    return values.sum() if known is None else values.masked_fill(~known, 0).sum()


# Ordinary training: how a teacher learns, and how validation measures.
LABELS_ALONE = Objective(forward_kl, 1.0, 0.0, 1.0, "labels")
