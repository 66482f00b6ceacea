"""Several teachers as one distribution: the weighted mean of their probabilities."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def log_probabilities(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float
) -> Tensor:
    """log p_T, where p_T is the weighted mean of softmax(y / T) over teachers.

    logits: [N, V] per teacher. Returns [N, V].
    """
    scaled = [y if temperature == 1 else y / temperature for y in logits]
    return mean_of([F.log_softmax(y, dim=-1) for y in scaled], weights)


@torch.no_grad()
def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean of logits, [N, V] per teacher. Returns [N, V]."""
    pairs = zip(logits, _normalized(weights), strict=True)
    return torch.stack([share * y for y, share in pairs]).sum(0)


def mean_of(log_probs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log Σ w_k p_k / Σ w_k, from log p_k [N, V] per teacher. Returns [N, V]."""
    if len(log_probs) == 1:
        return log_probs[0]
    pairs = zip(log_probs, _normalized(weights), strict=True)
    return torch.stack([log_p + math.log(share) for log_p, share in pairs]).logsumexp(0)


def _normalized(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]
