import math

import torch
from torch import Tensor

from lightning_distill.losses.checks import check_range
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.divergences.reverse_kl import reverse_kl


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q, per position, in nats.

    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    beta: from 0 to 1; else raises ValueError. At 0 it is KL(p ‖ q), the limit of it / β; at 1 it is
    KL(q ‖ p), the limit of it / (1 − β).
    Agarwal et al. 2024, On-Policy Distillation of Language Models, section 2.
    """
    check_range("beta", beta, 0, 1)
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)
