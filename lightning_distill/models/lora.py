"""A few weights are trained beside all others, which stay as they are (Hu et al. 2021, LoRA).

peft puts them into the model's own modules, so its class, its base model and its head stay what
they were. Before the model is measured and saved they are merged into the weights they stand
beside: what is saved is a model like any other, and needs no peft.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_distill.errors import unknown_name

log = logging.getLogger(__name__)


def wanted(role: Mapping[str, Any]) -> bool:
    return bool((role.get("lora") or {}).get("rank"))


def check(model: PreTrainedModel, role: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError where an adapter is asked for beside what is not there.

    A model on the meta device is enough to find out. name: `teacher` or `student`.
    """
    if wanted(role):
        _places(model, role["lora"]["target_modules"], name)


def attach(model: PreTrainedModel, role: Mapping[str, Any], name: str, seed: int) -> None:
    """Adapters as `role.lora` says, where it does; then they alone are trained.

    They begin as zeros: the model says what it said before. Theirs are the only parameters that
    require gradients afterwards, but for a classifier's head, which may be new; they are kept in 32
    bits.
    """
    if not wanted(role):
        return
    from peft import LoraConfig, inject_adapter_in_model

    lora = role["lora"]
    places = _places(model, lora["target_modules"], name)
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=2 * lora["rank"] if lora["alpha"] is None else lora["alpha"],
        target_modules=places,
        lora_dropout=lora["dropout"],
        fan_in_fan_out=isinstance(model.get_submodule(places[0]), Conv1D),
    )
    with torch.random.fork_rng([]):  # of the seed alone, whatever was random before
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for p in _head(model):
        p.requires_grad_(True)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    count, whole = trainable(model), sum(p.numel() for p in model.parameters())
    log.info(
        "%s: %s trainable parameters, adapters of rank %s beside the %s of %s",
        *(name, f"{count:,}", lora["rank"], f"{whole - count:,}"),
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


def _places(model: PreTrainedModel, asked: list[str] | None, name: str) -> list[str]:
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
            raise unknown_name(f"{name}.lora.target_modules", one, names)
    return [place for place in known if any(_is_called(place, one) for one in asked)]


def _is_called(place: str, name: str) -> bool:
    return f".{place}".endswith(f".{name}")


def _is_read(model: PreTrainedModel, place: str) -> bool:
    parent, _, name = place.rpartition(".")
    return name == "out_proj" and hasattr(model.get_submodule(parent), "conv1d")
