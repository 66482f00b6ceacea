"""What the student minimizes: one file per divergence, and the objective that all of them share.

Names are imported when they are first used, so that settings are checked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_distill.losses.objective import LABELS_ALONE, Objective
    from lightning_distill.losses.terms import Terms

__all__ = ["LABELS_ALONE", "Objective", "Terms"]

_MODULES = {"LABELS_ALONE": "objective", "Objective": "objective", "Terms": "terms"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
