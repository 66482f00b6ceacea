"""Low-rank adapters (Hu et al. 2021, LoRA): a few trained weights beside the frozen ones.

peft puts adapters into the model's own modules, so the model keeps its class, base model and head.
They are merged into the weights before the model is evaluated and saved: what is saved is an
ordinary model, and needs no peft.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_distill.errors import unknown_name
from lightning_distill.models.embedding import embedding_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoRASettings:
    """rank: of each adapter. alpha: an adapter's output is scaled by alpha / rank; None for
    2 · rank. target_modules: names of linear layers; None for all. dropout: of an adapter's input.
    """

    rank: int
    alpha: float | None = None
    target_modules: Sequence[str] | None = None
    dropout: float = 0.0


def check(model: PreTrainedModel, settings: LoRASettings | None, role: str) -> None:
    """Raises ConfigError where `target_modules` names a layer that the model lacks.

    A model on the meta device is enough. role: `teacher` or `student`.
    """
    if settings:
        _target_layers(model, settings.target_modules, role)


def attach(
    model: PreTrainedModel,
    settings: LoRASettings | None,
    role: str,
    seed: int,
    new_tokens: bool = False,
) -> None:
    """Adds adapters and freezes the other weights; does nothing without settings.

    Adapters start at zero, so the model's outputs do not change. The head of a classifier, which
    may be new, is trained as well. Trained weights are kept in 32 bits. new_tokens: there are some
    that the model has not learned, so that its embedding and output head are trained too, in its
    own dtype.
    """
    if settings is None:
        return
    from peft import LoraConfig, inject_adapter_in_model

    targets = _target_layers(model, settings.target_modules, role)
    alpha: Any = 2 * settings.rank if settings.alpha is None else settings.alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=settings.dropout,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
    )
    with torch.random.fork_rng([]):  # initialized by the seed alone
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for p in _classification_head(model):
        p.requires_grad_(True)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    for weight in embedding_weights(model) if new_tokens else []:
        weight.requires_grad_(True)
    count, total = count_trainable(model), sum(p.numel() for p in model.parameters())
    log.info(
        "%s: %s trainable parameters, %s frozen; adapters of rank %s on %s",
        *(role, f"{count:,}", f"{total - count:,}", settings.rank),
        ", ".join(sorted({name.rpartition(".")[2] for name in targets})),
    )


def count_trainable(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def merge(model: Any) -> None:
    """Adds the adapters, if there are any, to the frozen weights and removes them."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config


def _classification_head(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights on top of a classifier's body; empty for a language model."""
    if model.get_output_embeddings() is not None:
        return []
    body = {id(p) for p in model.base_model.parameters()}
    return [p for p in model.parameters() if id(p) not in body]


def _target_layers(
    model: PreTrainedModel, target_modules: Sequence[str] | None, role: str
) -> list[str]:
    """The full names of the layers that get an adapter; all linear layers where None is given.

    Left out are output heads, and the experts of a mixture, which are no linear layers in
    transformers.
    """
    output, head = model.get_output_embeddings(), {id(p) for p in _classification_head(model)}
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and id(module.weight) not in head
        and not _bypasses_adapters(model, name)
    ]
    if target_modules is None:
        return linear
    for target in target_modules:
        if not any(_matches(name, target) for name in linear):
            names = {name.rpartition(".")[2] for name in linear}
            raise unknown_name(f"{role}.lora.target_modules", target, names)
    return [name for name in linear if any(_matches(name, target) for target in target_modules)]


def _matches(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _bypasses_adapters(model: PreTrainedModel, name: str) -> bool:
    """The kernels of state-space layers multiply by out_proj's weight, not by its module."""
    parent, _, kind = name.rpartition(".")
    return kind == "out_proj" and hasattr(model.get_submodule(parent), "conv1d")
