"""Models whose weights lie in shards on all devices, a layer of which is put together at a time.

PyTorch's FSDP2.
"""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_distill.models import find_layers
from lightning_distill.models.head import Predictor, read
from lightning_distill.models.pretrained import is_quantized


class Sharded(ModelParallelStrategy):
    """Over all devices of all machines; a checkpoint is one file, as a single device writes it."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def is_sharding(trainer: L.Trainer) -> bool:
    return isinstance(trainer.strategy, ModelParallelStrategy)


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


def _read(whole: bool) -> Callable[..., Tensor]:
    def of_model(model: PreTrainedModel, **inputs: Any) -> Tensor:
        return read(model, whole, **inputs)

    return of_model


def _own_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Before FSDP made a class of its own of it."""
    return next(c for c in type(model).__mro__[1:] if c is not FSDPModule)


def give_back(predictors: Sequence[Predictor]) -> None:
    """Frees what was put together of frozen models, for which no backward pass does it."""
    for predictor in predictors:
        if isinstance(predictor.model, FSDPModule):
            predictor.model.reshard()


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def local(x: Tensor) -> Tensor:
    """This device's part."""
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(model: PreTrainedModel) -> PreTrainedModel:
    """A sharded model with all of its weights, in rank 0; elsewhere without any. To be saved."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    with torch.device("meta"):
        plain: PreTrainedModel = _own_class(model)(model.config)
    if weights:
        plain.load_state_dict(weights, assign=True)
        plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
