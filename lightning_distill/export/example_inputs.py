"""Batches of the test split, to trace a graph from and to compare its outputs on."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.models.output_head import INPUTS

BATCH_SIZES = (2, 3, 1)


def input_names(model: Any) -> list[str]:
    """The arguments of the model that may be tensors of a batch."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name in INPUTS if name in parameters]


def example_batches(model: PreTrainedModel, data: DistillationData) -> list[dict[str, Tensor]]:
    """Three batches of different sizes.

    Those of a causal language model also differ in length, and the first one is left-padded.
    """
    examples = data.examples("test")
    if not (data.is_generative and data.continues_prompt):
        names = input_names(model)
        rows = [[examples[i % len(examples)] for i in range(size)] for size in BATCH_SIZES]
        batches = [next(iter(data.loader(batch, len(batch)))) for batch in rows]
        return [{name: x for name, x in batch.items() if name in names} for batch in batches]
    ids = torch.stack([examples[i % len(examples)]["input_ids"] for i in range(3)])
    T = ids.shape[1]
    return [
        _text_batch(model, ids[:2], padding=T // 4),
        _text_batch(model, ids),
        _text_batch(model, ids[:1, : T // 2]),
    ]


def valid_positions(batch: dict[str, Tensor], output: Tensor) -> Tensor:
    """A mask of the outputs that are not padding: [B, T], or [B] for one output per example."""
    mask = batch.get("attention_mask")
    if mask is None or output.ndim == 2:
        return torch.ones(output.shape[:-1], dtype=torch.bool)
    return mask.bool()


def _text_batch(model: PreTrainedModel, ids: Tensor, padding: int = 0) -> dict[str, Tensor]:
    """padding: masked tokens at the start of the first row."""
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: batch[name] for name in input_names(model) if name in batch}
