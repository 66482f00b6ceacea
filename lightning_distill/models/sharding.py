"""A model's layers as FSDP units."""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import lightning as L
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from lightning_distill.models.inspection import find_layers
from lightning_distill.models.output_head import Predictor, read
from lightning_distill.models.pretrained import is_quantized


def shard(module: L.LightningModule, predictors: Sequence[Predictor]) -> None:
    """Splits up the models that these call, unless that is done; quantised ones stay whole.

    Each layer is put together when it is reached. What is beside the layers, embedding and output
    matrix, stays together until the backward pass, since the loss reads it after the forward one.
    """
    mesh = module.device_mesh["data_parallel"]  # type: ignore[index]
    for predictor in predictors:
        model: Any = predictor.model
        if is_quantized(model):
            continue
        if not isinstance(model, FSDPModule):
            _, layers = find_layers(model) or ("", [])
            for layer in layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh, reshard_after_forward=False)
            # Our forward pass may stop short of the logits, and has to put weights together too.
            model.read = MethodType(_read(predictor.head is None), model)
            register_fsdp_forward_method(model, "read")
        predictor.read = getattr(model, "read")  # type: ignore[method-assign]  # noqa: B009


def _read(full_tensor: bool) -> Callable[..., Tensor]:
    def of_model(model: PreTrainedModel, **inputs: Any) -> Tensor:
        return read(model, full_tensor, **inputs)

    return of_model
