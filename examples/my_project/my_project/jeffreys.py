"""A divergence: a function of two sets of log-probabilities."""

from torch import Tensor


def jeffreys(student: Tensor, teacher: Tensor, reverse_weight: float = 1.0) -> Tensor:
    """KL(p ‖ q) + reverse_weight · KL(q ‖ p) per position, in nats.

    student, teacher: log-probabilities log q, log p: [..., V]. Returns [...].
    Raises ValueError for a negative weight.
    """
    if reverse_weight < 0:
        raise ValueError(f"reverse_weight={reverse_weight} must not be negative")
    q, p = student.exp(), teacher.exp()
    forward, reverse = p * (teacher - student), q * (student - teacher)
    return (forward + reverse_weight * reverse).sum(-1)
