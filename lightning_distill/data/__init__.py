"""Where the text comes from: one file a source, one LightningDataModule for all of them."""

from lightning_distill.data.datamodule import DataModule

__all__ = ["DataModule"]
