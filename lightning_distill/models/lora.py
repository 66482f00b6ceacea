"""A few weights are trained beside all others, which stay as they are (Hu et al. 2021, LoRA).

peft puts them into the model's own modules, so its class, its base model and its head stay what
they were. Before the model is measured and saved they are merged into the weights they stand
beside: what is saved is a model like any other, and needs no peft.
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

    A model on the meta device will do. role: `teacher` or `student`.
    """
    if settings:
        _places(model, settings.target_modules, role)


def attach(model: PreTrainedModel, settings: LoRASettings | None, role: str, seed: int) -> None:
    """Adds adapters and freezes the other weights; does nothing without settings.

    Adapters start as zeros, so that the model's outputs stay what they were. A classifier's head,
    which may be new, is trained as well. What is trained is kept in 32 bits.
    """
    if settings is None:
        return
    from peft import LoraConfig, inject_adapter_in_model

    places = _places(model, settings.target_modules, role)
    alpha: Any = 2 * settings.rank if settings.alpha is None else settings.alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        target_modules=places,
        lora_dropout=settings.dropout,
        fan_in_fan_out=isinstance(model.get_submodule(places[0]), Conv1D),
    )
    with torch.random.fork_rng([]):  # initialized by the seed alone
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for p in _head(model):
        p.requires_grad_(True)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    count, total = trainable(model), sum(p.numel() for p in model.parameters())
    log.info(
        "%s: %s trainable parameters, adapters of rank %s beside the %s of %s",
        *(role, f"{count:,}", settings.rank, f"{total - count:,}"),
        ", ".join(sorted({place.rpartition(".")[2] for place in places})),
    )


def trainable(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def merge(model: Any) -> None:
    """Adds the adapters to the weights they stand beside, and takes them out; if there are any."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config


def _head(model: PreTrainedModel) -> list[nn.Parameter]:
    """What a classifier has on top of its body; of other models nothing, which have learned it."""
    if model.get_output_embeddings() is not None:
        return []
    body = {id(p) for p in model.base_model.parameters()}
    return [p for p in model.parameters() if id(p) not in body]


def _places(model: PreTrainedModel, asked: Sequence[str] | None, role: str) -> list[str]:
    """The full names of the layers that get one: `asked`, or all linear ones but the output.

    The experts of a mixture are no linear layers in transformers, and get none.
    """
    output, head = model.get_output_embeddings(), {id(p) for p in _head(model)}
    known = [
        place
        for place, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and place
    ]
    known = [place for place in known if id(model.get_submodule(place).weight) not in head]
    # State-space layers multiply by out_proj's matrix themselves, past any adapter.
    known = [place for place in known if not _is_read(model, place)]
    if asked is None:
        return known
    for one in asked:
        if not any(_is_called(place, one) for place in known):
            names = {place.rpartition(".")[2] for place in known}
            raise unknown_name(f"{role}.lora.target_modules", one, names)
    return [place for place in known if any(_is_called(place, one) for one in asked)]


def _is_called(place: str, name: str) -> bool:
    return f".{place}".endswith(f".{name}")


def _is_read(model: PreTrainedModel, place: str) -> bool:
    parent, _, name = place.rpartition(".")
    return name == "out_proj" and hasattr(model.get_submodule(parent), "conv1d")
