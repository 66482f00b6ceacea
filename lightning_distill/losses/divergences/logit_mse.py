from torch import Tensor


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over the vocabulary of (z − y)² per position, z the student's logits, y the
    teacher's.

    student, teacher: logits divided by the temperature: [..., V]. Returns [...]. T² · logit_mse is
    the same at every temperature. For logits whose mean over the vocabulary is zero it is twice
    the limit of T² KL(p_T ‖ q_T) as T grows (Hinton et al. 2015, section 2.1).
    Ba and Caruana 2014, section 2.2.
    """
    return (student - teacher).square().mean(-1)
