"""What the student is asked to minimise: one file a divergence, one objective around them all."""

from lightning_distill.losses.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective, Terms

__all__ = ["Objective", "Terms", "forward_kl"]
