"""Sharding of models with FSDP2, one unit a layer."""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import lightning as L
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from lightning_distill.distributed.fsdp import FSDP2Strategy
from lightning_distill.models.inspection import find_layers
from lightning_distill.models.output_head import Predictor, forward
from lightning_distill.models.pretrained import is_quantized


def shard(module: L.LightningModule, predictors: Sequence[Predictor]) -> None:
    """Shards the predictors' models, unless they are already; quantized ones stay unsharded.

    A layer's weights are gathered for its forward pass. Those outside the layers, embedding and
    output matrix, stay gathered until the backward pass, because the loss reads them in between.
    """
    mesh = module.device_mesh["data_parallel"]  # type: ignore[index]
    strategy = module.trainer.strategy
    frees = strategy.reshard_after_forward if isinstance(strategy, FSDP2Strategy) else True
    for predictor in predictors:
        model: Any = predictor.model
        if is_quantized(model):
            continue
        if not isinstance(model, FSDPModule):
            _, layers = find_layers(model) or ("", [])
            for layer in layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=frees)
            fully_shard(model, mesh=mesh, reshard_after_forward=False)
            # FSDP gathers weights for registered methods alone, and ours is not `model.forward`.
            model.states_or_logits = MethodType(_forward(predictor.head is None), model)
            register_fsdp_forward_method(model, "states_or_logits")
        predictor.forward = model.states_or_logits  # type: ignore[method-assign]


def _forward(to_logits: bool) -> Callable[..., Tensor]:
    def of_model(model: PreTrainedModel, **inputs: Any) -> Tensor:
        return forward(model, to_logits, **inputs)

    return of_model
