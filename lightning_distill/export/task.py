"""What an export knows of the student's task, beside the class that loads it.

That class is the data module's, as everywhere. A graph needs example inputs and the name of the
output, which are here. An encoder-decoder is more than one graph, and is refused.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.models import pretrained
from lightning_distill.models.output_head import INPUTS

OUTPUT = "logits"
LOADED = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
UNTOKENIZED = """from transformers import {auto}

model = {auto}.from_pretrained("{name}")"""
CONTINUED = """
inputs = tokenizer("Once", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"""


def load(task: type[DistillationData], folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = pretrained.load_saved(task.auto_class, folder, "export.run")
    return model.eval()


def load_tokenizer(task: type[DistillationData], folder: Path) -> PreTrainedTokenizerBase | None:
    return (
        pretrained.load_saved(AutoTokenizer, folder, "export.run") if task.has_tokenizer else None
    )


def kind(task: type[DistillationData]) -> tuple[str, str | None]:
    """What a model of the task is, and the hub's name of it where there is one."""
    return task.model_kind, task.hub_task


def use(task: type[DistillationData], name: str) -> str:
    """How to load it, in Python."""
    auto = task.auto_class.__name__
    text = (LOADED if task.has_tokenizer else UNTOKENIZED).format(auto=auto, name=name)
    return f"```python\n{text}{CONTINUED if goes_on(task) else ''}\n```"


def goes_on(task: DistillationData | type[DistillationData]) -> bool:
    """Whether its models are causal language models."""
    return task.is_generative and task.continues_prompt


def inputs(model: Any) -> list[str]:
    """The names of what it reads, in the order of `models.head.INPUTS`."""
    known = inspect.signature(model.forward).parameters
    return [name for name in INPUTS if name in known]


def examples(model: PreTrainedModel, data: DistillationData) -> list[dict[str, Tensor]]:
    """Batches of the test split, of several sizes; of a language model one with padding on the
    left."""
    there = data.examples("test")
    if not goes_on(data):
        sizes = (2, 3, 1)
        batches = (data.loader([there[i % len(there)] for i in range(n)], n) for n in sizes)
        read = inputs(model)
        return [{name: x for name, x in next(iter(b)).items() if name in read} for b in batches]
    ids = torch.stack([there[i % len(there)]["input_ids"] for i in range(3)])
    T = ids.shape[1]
    return [_batch(model, ids[:2], T // 4), _batch(model, ids), _batch(model, ids[:1, : T // 2])]


def kept(batch: dict[str, Tensor], output: Tensor) -> Tensor:
    """Where an output means something: [B, T], or [B] of one that is a class of the whole."""
    mask = batch.get("attention_mask")
    if mask is None or output.ndim == 2:
        return torch.ones(output.shape[:-1], dtype=torch.bool)
    return mask.bool()


def _batch(model: PreTrainedModel, ids: Tensor, padding: int = 0) -> dict[str, Tensor]:
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0  # of the first row
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: batch[name] for name in inputs(model) if name in batch}
