import math

import torch
from torch import Tensor

from lightning_distill.config.validation import require
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.divergences.reverse_kl import reverse_kl


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q, per position, in nats.

    student, teacher: log-probabilities log q, log p: [..., V]. Returns [...]. beta: from 0 to 1.
    Divided by β it tends to KL(p ‖ q) as β goes to 0, and divided by 1 − β to KL(q ‖ p) as β goes
    to 1; at 0 and at 1 it is those two.
    Agarwal et al. 2024, On-Policy Distillation of Language Models, section 2 (their M).
    """
    require("loss.beta", beta, 0, 1)
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)
