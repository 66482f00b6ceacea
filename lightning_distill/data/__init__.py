"""What is distilled: one file a task, each a LightningDataModule, and one file a source."""

from lightning_distill.data.chat import Chat
from lightning_distill.data.classification import Classification
from lightning_distill.data.datamodule import DataModule
from lightning_distill.data.images import Images
from lightning_distill.data.language import Language
from lightning_distill.data.masked import MaskedLanguage
from lightning_distill.data.translation import Translation

__all__ = [
    "Chat",
    "Classification",
    "DataModule",
    "Images",
    "Language",
    "MaskedLanguage",
    "Translation",
]
