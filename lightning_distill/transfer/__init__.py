"""How knowledge travels from teacher to student: one file a way."""

from lightning_distill.transfer.cached import Cached
from lightning_distill.transfer.online import Online

__all__ = ["Cached", "Online"]
