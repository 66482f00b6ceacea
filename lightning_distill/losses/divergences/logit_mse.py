from torch import Tensor


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/V Σ (z − y)² per position, with the student's logits z and the teacher's y.

    student, teacher: logits divided by the temperature [..., V]. Returns [...].
    T² · logit_mse does not depend on T. For logits with mean zero over the vocabulary it is twice
    the limit of T² KL(p_T ‖ q_T) as T grows (Hinton et al. 2015, section 2.1).
    Ba and Caruana 2014, section 2.2.
    """
    return (student - teacher).square().mean(-1)


logit_mse.compares = "logits"  # type: ignore[attr-defined]
