"""What is distilled: one file a task, each a LightningDataModule, and one file a source."""

from hydra.utils import get_class
from omegaconf import DictConfig

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
    "task_of",
]


def task_of(cfg: DictConfig) -> type[DataModule]:
    """The class that `data=` chooses: what it says of its task needs no data."""
    found: type[DataModule] = get_class(cfg.data._target_)
    return found
