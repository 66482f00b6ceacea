import math

import torch
from torch import Tensor

from lightning_distill.losses.checks import check_range
from lightning_distill.losses.divergences.forward_kl import forward_kl


def skewed_forward_kl(student: Tensor, teacher: Tensor, skew: float = 0.1) -> Tensor:
    """KL(p ‖ λ p + (1 − λ) q) per position, in nats; λ is `skew`.

    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    skew: from 0, the forward KL, to below 1; else raises ValueError. Above 0 the divergence is at
    most −log λ.
    Ko et al. 2024, DistiLLM, eq. 4.
    """
    check_range("skew", skew, 0, 1, below=True)
    if skew == 0:
        return forward_kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(skew), student + math.log(1 - skew))
    return forward_kl(mixture, teacher)
