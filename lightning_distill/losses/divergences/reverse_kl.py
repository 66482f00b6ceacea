from torch import Tensor

from lightning_distill.losses.divergences.forward_kl import forward_kl


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p) per position, in nats: q concentrates on modes of p.

    student, teacher: log-probabilities log q, log p [..., V]. Returns [...].
    Gu et al. 2024, MiniLLM, section 2.1.
    """
    return forward_kl(teacher, student)
