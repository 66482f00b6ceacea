"""What the student minimizes: one file per divergence, and the objective that all of them share."""

from lightning_distill.losses.objective import LABELS_ALONE, Objective
from lightning_distill.losses.terms import Terms

__all__ = ["LABELS_ALONE", "Objective", "Terms"]
