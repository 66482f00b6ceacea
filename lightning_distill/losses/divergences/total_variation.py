from torch import Tensor


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """½ Σ |p − q| per position, from 0 to 1.

    student, teacher: log-probabilities log q, log p [..., V]. Returns [...]. Symmetric.
    Wen et al. 2023, f-Divergence Minimization for Sequence-Level Knowledge Distillation.
    """
    return 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)
