import torch
from torch import Tensor

from lightning_distill.losses.checks import check_range

LIMIT = 1e3  # of |a| and |b|, far beyond useful values


def alpha_beta(
    student: Tensor, teacher: Tensor, ab_alpha: float = 0.2, ab_beta: float = 0.7
) -> Tensor:
    """−1/(a b) Σ [p^a q^b − a/(a + b) p^(a + b) − b/(a + b) q^(a + b)] per position.

    a is `ab_alpha`, b is `ab_beta`. Where a, b or a + b is 0, the limit is taken: a=1, b=0 is the
    forward KL, a=0, b=1 the reverse KL. a=b=1 is half the squared distance of p and q, a=b=½ four
    times the squared Hellinger distance.
    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    ab_alpha, ab_beta: from −1000 to 1000; else raises ValueError.
    Wang et al. 2025, ABKD, after Cichocki et al. 2011.
    """
    a, b = ab_alpha, ab_beta
    check_range("ab_alpha", a, -LIMIT, LIMIT)
    check_range("ab_beta", b, -LIMIT, LIMIT)
    q, p = student, teacher
    if a == 0 and b == 0:
        return 0.5 * (p - q).square().sum(-1)
    if b == 0:
        return ((a * p).exp() * (a * (p - q) - 1) + (a * q).exp()).sum(-1) / a**2
    if a == 0:
        return ((b * q).exp() * (b * (q - p) - 1) + (b * p).exp()).sum(-1) / b**2
    if a + b == 0:
        return ((a * (p - q)).exp() - 1 - a * (p - q)).sum(-1) / a**2
    both = torch.exp(a * p + b * q)
    ends = a / (a + b) * ((a + b) * p).exp() + b / (a + b) * ((a + b) * q).exp()
    return (ends - both).sum(-1) / (a * b)
