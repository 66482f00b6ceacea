"""Several teachers as one: their probabilities averaged, by their weights."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def log_probabilities(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float
) -> Tensor:
    """log p_T, p_T the mean of the teachers' softened distributions.

    logits: one [N, V] a teacher. Returns [N, V].
    """
    softened = [y if temperature == 1 else y / temperature for y in logits]
    return mean_of([F.log_softmax(y, dim=-1) for y in softened], weights)


@torch.no_grad()
def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One [N, V] a teacher to the mean: [N, V]."""
    pairs = zip(logits, _normalised(weights), strict=True)
    return torch.stack([share * y for y, share in pairs]).sum(0)


def mean_of(log_probs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log Σ w_k p_k / Σ w_k of one set of log-probabilities [N, V] a teacher."""
    if len(log_probs) == 1:
        return log_probs[0]
    pairs = zip(log_probs, _normalised(weights), strict=True)
    return torch.stack([one + math.log(share) for one, share in pairs]).logsumexp(0)


def _normalised(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]
