from torch import Tensor

from lightning_distill.losses.divergences.forward_kl import forward_kl


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p) per position, in nats: the student keeps to p's modes.

    student, teacher: log-probabilities log q, log p: [..., V]. Returns [...].
    Gu et al. 2024, MiniLLM.
    """
    return forward_kl(teacher, student)
