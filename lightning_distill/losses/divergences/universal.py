import torch
import torch.nn.functional as F
from torch import Tensor


def universal(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ |p_(i) − q_(i)| per position, with p and q sorted in descending order.

    The Wasserstein distance between distributions over two vocabularies in which all tokens are
    equally far apart.
    student, teacher: log-probabilities log q [..., V], log p [..., V']; the shorter one is padded
    with probability 0. Returns [...], from 0 to 2.
    Boizard et al. 2024, Towards Cross-Tokenizer Distillation.
    """
    q = student.exp().sort(descending=True).values
    p = teacher.exp().sort(descending=True).values
    width = max(q.shape[-1], p.shape[-1])
    q, p = (F.pad(x, (0, width - x.shape[-1])) for x in (q, p))
    return torch.abs(p - q).sum(-1)


universal.shared_vocabulary = False  # type: ignore[attr-defined]
