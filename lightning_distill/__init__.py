"""Experiments in distilling language models."""

from lightning_distill.errors import ConfigError

__all__ = ["ConfigError"]

__version__ = "0.1.0"
