"""How the teacher's signal reaches the student: one file a transfer."""

from lightning_distill.transfer.cached import Cached
from lightning_distill.transfer.on_policy import OnPolicy
from lightning_distill.transfer.online import Online
from lightning_distill.transfer.sequence import Sequence

__all__ = ["Cached", "OnPolicy", "Online", "Sequence"]
