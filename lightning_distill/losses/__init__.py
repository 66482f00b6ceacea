"""What the student is asked to minimise: one file a divergence, one objective around them all."""

from lightning_distill.losses.objective import LABELS_ALONE, Objective, Terms

__all__ = ["LABELS_ALONE", "Objective", "Terms"]
