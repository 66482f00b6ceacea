from torch import Tensor

from lightning_distill.losses.divergences.skewed_forward_kl import skewed_forward_kl


def skewed_reverse_kl(student: Tensor, teacher: Tensor, skew: float = 0.1) -> Tensor:
    """KL(q ‖ λ q + (1 − λ) p) per position, in nats; λ is `skew`.

    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    skew: from 0, the reverse KL, to below 1; else raises ValueError.
    Ko et al. 2024, DistiLLM, section 3.1.
    """
    return skewed_forward_kl(teacher, student, skew)
