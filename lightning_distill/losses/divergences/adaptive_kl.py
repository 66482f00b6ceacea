import math

import torch
from torch import Tensor

from lightning_distill.losses.checks import check_range
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.divergences.reverse_kl import reverse_kl


def adaptive_kl(student: Tensor, teacher: Tensor, head_mass: float = 0.5) -> Tensor:
    """g_head / (g_head + g_tail) · KL(p ‖ q) + g_tail / (g_head + g_tail) · KL(q ‖ p), in nats.

    g is Σ |p − q|: g_head over the fewest tokens that hold `head_mass` of p, g_tail over the
    others. The forward KL corrects the head faster, the reverse KL the tail. No gradient flows
    through the weights.
    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    head_mass: from 0, the reverse KL, to 1, the forward KL; else raises ValueError.
    The paper's code has another head: the tokens whose cumulated mass, their own included, is at
    most `head_mass`, and at least the first. For p = (.4, .3, .2, .1), q = (.25, .1, .25, .4) and
    head_mass = 0.5 that gives 0.3725, and this function 0.3586.
    Wu et al. 2024, Rethinking Kullback-Leibler Divergence in Knowledge Distillation.
    """
    check_range("head_mass", head_mass, 0, 1)
    with torch.no_grad():
        p, order = teacher.exp().sort(descending=True)
        gap = (p - student.exp().gather(-1, order)).abs()
        before = p.cumsum(-1) - p  # the mass of the more probable tokens
        # Rounding can make that mass 1 before the last token.
        head = before < (head_mass if head_mass < 1 else math.inf)
        share = (gap * head).sum(-1) / gap.sum(-1).clamp(min=torch.finfo(p.dtype).tiny)
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    return share * forward + (1 - share) * reverse
