"""What is distilled: one file a task, each a LightningDataModule, and one file a source."""

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tasks.chat import Chat
from lightning_distill.data.tasks.classification import Classification
from lightning_distill.data.tasks.images import Images
from lightning_distill.data.tasks.masked_lm import MaskedLM
from lightning_distill.data.tasks.translation import Translation

__all__ = [
    "CausalLM",
    "Chat",
    "Classification",
    "DistillationData",
    "Images",
    "MaskedLM",
    "Translation",
]
