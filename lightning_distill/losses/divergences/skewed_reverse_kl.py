from torch import Tensor

from lightning_distill.losses.divergences.skewed_forward_kl import skewed_forward_kl


def skewed_reverse_kl(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """KL(q ‖ λ q + (1 − λ) p) per position, in nats; λ is `skew`.

    student, teacher: log-probabilities log q, log p: [..., V]. Returns [...]. skew: from 0 to
    below 1. `skew=0` is the reverse KL.
    Ko et al. 2024, DistiLLM.
    """
    return skewed_forward_kl(teacher, student, skew)
