"""The objective that every divergence is used in.

    L = hard_weight · H(t, q)  +  alpha · T² · D(p_T, q_T)

p and q are the teacher's and the student's next-token distributions, p_T and q_T the same with
logits divided by the temperature T, t the ground truth, D a divergence (Hinton et al. 2015,
section 2, where D is the cross-entropy; the KL divergence has the same gradients).

To read: `Objective.terms` selects the target tokens; `Objective.chunk_terms` computes the terms
from the logits of a chunk of them; `sum_in_chunks` adds the chunks up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_distill.errors import ConfigError
from lightning_distill.losses.checks import problems_of_divergence, problems_of_settings
from lightning_distill.losses.chunked import sum_in_chunks
from lightning_distill.losses.distributions import (
    DenseSignal,
    Sparse,
    StudentLogits,
    Target,
    TeacherSignal,
    target_positions,
)
from lightning_distill.losses.divergences import find_divergence
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.intermediate import IntermediateLoss
from lightning_distill.losses.schedules import LossWeights
from lightning_distill.losses.terms import Terms
from lightning_distill.models.predictions import Predictions


class Objective:
    """The weighted sum of a hard target, a soft target, and losses on intermediate layers.

    divergence: (student, teacher) log-probabilities [N, V] to [N]; or the name of one of this
        package, `losses/divergences/<name>.py`.
    temperature: above 0; a number, or a schedule over the steps: {shape: cosine, start: 4, end: 1}
        (`losses/schedules.py`).
    alpha: weight of the soft term, from 0; a number, or a schedule.
    hard_weight: weight of H(t, q), or `complement` for 1 − alpha.
    hard_target: t is the ground truth (`labels`) or the teacher's distribution (`teacher`).
    label_smoothing: share of t, from 0 to below 1, that is spread evenly over the vocabulary where
        t is the ground truth (Szegedy et al. 2016, section 7): the baseline that softens targets
        without a teacher.
    fused: never hold all logits, where the models allow that (`losses/chunked.py`).
    compares: `logits` if the divergence takes logits / T in place of log-probabilities.
    shared_vocabulary: false if the divergence takes any two vocabularies, [N, V] and [N, V'].
        None for what the divergence declares of either (`losses/divergences`).
    more: losses on intermediate layers (`IntermediateLoss`), each under its name in logs; anything
        else is passed to the divergence.

    Raises ConfigError that names every setting that is out of range.
    """

    def __init__(
        self,
        divergence: Callable[..., Tensor] | str = "forward_kl",
        temperature: float | Mapping[str, Any] = 1.0,
        alpha: float | Mapping[str, Any] = 1.0,
        hard_weight: float | str = 1.0,
        hard_target: str = "labels",
        label_smoothing: float = 0.0,
        fused: bool = True,
        compares: str | None = None,
        shared_vocabulary: bool | None = None,
        **more: Any,
    ) -> None:
        if isinstance(divergence, str):
            divergence = find_divergence(divergence)
        self.divergence = divergence
        terms = {name: one for name, one in more.items() if isinstance(one, IntermediateLoss)}
        self.intermediate = {name: term for name, term in terms.items() if term.weight}
        self.settings = {name: value for name, value in more.items() if name not in terms}
        self.hard_target = hard_target
        self.label_smoothing = label_smoothing
        self.fused = fused
        if compares is None:
            compares = getattr(divergence, "compares", "probabilities")
        self.compares = compares
        if shared_vocabulary is None:
            shared_vocabulary = getattr(divergence, "shared_vocabulary", True)
        self.shared_vocabulary = shared_vocabulary
        self.teacher_weights: Sequence[float] = (1.0,)
        self.weights = LossWeights(temperature, alpha, hard_weight)
        if problems := [*self._problems(), *problems_of_divergence(divergence, self.settings)]:
            raise ConfigError("; ".join(problems) + ".")

    @property
    def needs_teacher(self) -> bool:
        """Whether any term needs the teacher's forward pass at any step."""
        return self.compares_predictions or bool(self.intermediate)

    @property
    def compares_predictions(self) -> bool:
        """Whether any term needs the teacher's predictions at any step."""
        hard = self.hard_target == "teacher" and self.weights.uses("hard")
        return hard or self.weights.uses("soft")

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | Sequence[Predictions] | Sparse | None,
        labels: Tensor,
        shifted_labels: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss per target token, to be differentiated, and the means of its terms.

        student: logits [B, T, V], or [B, V] of a classifier.
        teacher: as well, or what `CachedPredictions` has of it; None where alpha is 0.
        labels: [B, T] as transformers has them, not shifted: labels[b, t] is the token at t, and is
            predicted from t − 1; -100 where nothing is predicted. A classifier's are [B].
        shifted_labels: whether labels[b, t] is what is predicted at t, as in `CachedPredictions`.
        The terms are `hard` and `soft`, without their weights, in nats.

        Where temperature or alpha is a schedule, `weights.set_step(step, steps)` sets them.
        Raises ConfigError where a loss on intermediate layers is set, which needs `StudentModule`,
        and where cached predictions come with labels that are not shifted.
        """
        if self.intermediate:
            raise ConfigError(f"loss.{next(iter(self.intermediate))} needs a StudentModule.")
        if labels.ndim > 1 and not shifted_labels:
            if not (teacher is None or isinstance(teacher, Tensor)):
                raise ConfigError("Cached predictions need their own labels, shifted_labels=True.")
            student, labels = student[:, :-1], labels[:, 1:]
            teacher = None if teacher is None else teacher[:, :-1]
        size = student.shape[-1]
        if isinstance(teacher, Tensor):
            teacher = [Predictions(teacher, None, teacher.shape[-1])]
        if self.shared_vocabulary and not isinstance(teacher, Sparse):
            # The embedding of either may be padded.
            size = min([size, *(one.vocab_size for one in teacher or ())])
            teacher = [replace(one, vocab_size=size) for one in teacher or ()]
        terms = self.terms(Predictions(student, None, size), teacher or [], labels)
        parts = {name: value / terms.tokens.clamp(min=1) for name, value in terms.parts.items()}
        return terms.total / terms.tokens.clamp(min=1), parts

    def terms(
        self,
        student: Predictions,
        teacher: Sequence[Predictions] | Sparse,
        labels: Tensor,
        teacher_mask: Tensor | None = None,
        use_labels: bool = True,
        details: bool = False,
        positions: Tensor | None = None,
    ) -> Terms:
        """The terms of one micro-batch.

        student, teacher: of the student and of each teacher, [B, T, ...].
        labels: [B, T], -100 where nothing is predicted. Positions correspond: labels[b, t] is the
            token that the states at [b, t] predict.
        teacher_mask: [B, T], where student and teacher can be compared; None for everywhere.
        use_labels: false where the labels are sampled from the student, which are no ground truth.
        details: also nll; kl, KL(p ‖ q) at T = 1; the share of tokens under `teacher_mask`; and
            the norm of each weighted term's gradient with respect to the student's logits, which
            shows the balance that alpha and T result in.
        positions: `target_positions(labels)` [N], if known. Computing it here makes the CPU wait
            for the GPU.
        """
        if positions is None:
            positions = target_positions(labels)
        targets = labels.flatten()[positions] if use_labels else None
        mask = None if teacher_mask is None else teacher_mask.flatten()[positions]
        student = student.at(positions)
        signal = self._signal(teacher).at(positions)

        def chunk_terms(
            logits: Tensor, teacher_logits: list[Tensor], chunk: slice
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return self.chunk_terms(
                logits,
                signal.target(teacher_logits, chunk),
                None if targets is None else targets[chunk],
                None if mask is None else mask[chunk],
                details,
            )

        dense = signal.predictions
        if self.fused and student.head is not None and all(one.head for one in dense):
            total, sums = sum_in_chunks(student, dense, chunk_terms)
        else:
            logits = [one.logits() for one in dense]
            total, sums = chunk_terms(student.logits(), logits, slice(None))
        tokens = torch.as_tensor(len(positions), device=labels.device)
        return Terms.of_sums(total, sums, tokens, len(positions))

    def _signal(self, teacher: Sequence[Predictions] | Sparse) -> TeacherSignal:
        if isinstance(teacher, Sparse):
            return teacher
        return DenseSignal(teacher, self.teacher_weights)

    def chunk_terms(
        self,
        logits: Tensor,
        target: Target | None,
        labels: Tensor | None,
        mask: Tensor | None,
        details: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms over N positions, and each term's sum.

        logits: the student's, [N, V]. labels, mask: [N].
        """
        # Autocast would compute some sums over the vocabulary in 16 bits.
        with torch.autocast(logits.device.type, enabled=False):
            student = StudentLogits(logits)
            hard = self._hard(student, target, labels, mask)
            soft = self._soft(student, target, mask)
            terms = {k: x for k, x in (("hard", hard), ("soft", soft)) if x is not None}
            weighted = {name: self.weights.current[name] * term for name, term in terms.items()}
            total = sum(weighted.values(), logits.new_zeros(()))
            sums = {name: term.detach() for name, term in terms.items()}
            if details:
                sums |= self._details(student, target, labels, mask)
                for name, term in weighted.items():
                    (slope,) = torch.autograd.grad(term, logits, retain_graph=True)
                    sums[f"{name}_gradient_square"] = slope.square().sum()
        return total, sums

    def _hard(
        self,
        student: StudentLogits,
        target: Target | None,
        labels: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor | None:
        """Σ H(t, q); with hard_target=teacher Σ KL(p ‖ q). None if it has no weight or no t."""
        if not self.weights.uses("hard"):
            return None
        if self.hard_target == "teacher":
            return None if target is None else _sum(target.compare(forward_kl, student, 1.0), mask)
        if labels is None:
            return None
        nll = -student.log_probs_of(labels[:, None], 1.0).sum()
        if not self.label_smoothing:
            return nll
        uniform = -student.log_probs(1.0).mean(-1).sum()
        return (1 - self.label_smoothing) * nll + self.label_smoothing * uniform

    def _soft(
        self, student: StudentLogits, target: Target | None, mask: Tensor | None
    ) -> Tensor | None:
        """Σ T² · D(p_T, q_T). None if it has no weight at any step, or there is no teacher."""
        if target is None or not self.weights.uses("soft"):
            return None
        T = self.weights.temperature
        divergence = partial(self.divergence, **self.settings)
        compare = target.compare_logits if self.compares == "logits" else target.compare
        # The gradient of a softened divergence falls with 1 / T²; this restores it.
        return T**2 * _sum(compare(divergence, student, T), mask)

    @torch.no_grad()
    def _details(
        self,
        student: StudentLogits,
        target: Target | None,
        labels: Tensor | None,
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Sums over N positions that are logged whatever the weights are."""
        sums = {}
        if labels is not None:
            sums["nll"] = -student.log_probs_of(labels[:, None], 1.0).sum()
        if target is not None and self.shared_vocabulary:
            sums["kl"] = _sum(target.compare(forward_kl, student, 1.0), mask)
        if mask is not None:
            sums["known"] = mask.sum()
        return sums

    def _problems(self) -> Iterator[str]:
        yield from self.weights.problems
        if not self.weights.problems and not (
            self.weights.uses("hard") or self.weights.uses("soft") or self.intermediate
        ):
            yield "loss.hard_weight=0 with loss.alpha=0 leaves nothing to learn from"
        yield from problems_of_settings(
            self.hard_target, self.label_smoothing, self.compares, self.shared_vocabulary
        )


def nll(student: Predictions, labels: Tensor) -> tuple[Tensor, Tensor]:
    """H(labels, q) in nats, summed over the target tokens, and their number."""
    terms = LABELS_ALONE.terms(student, [], labels)
    return terms.total, terms.tokens


def _sum(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.sum() if mask is None else values.masked_fill(~mask, 0).sum()


# Training without a teacher: how a teacher learns, and how the validation nll is computed.
LABELS_ALONE = Objective(forward_kl, 1.0, 0.0, 1.0, "labels")
