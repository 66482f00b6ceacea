import torch
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q) per position, in nats: q covers all modes of p.

    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    Its gradient is that of the cross-entropy H(p, q), and it is zero for q = p.
    Hinton et al. 2015, section 2.
    """
    return torch.linalg.vecdot(teacher.exp(), teacher - student)
