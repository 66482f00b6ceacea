"""Models sharded by PyTorch's FSDP2.

Each device holds a part of every weight, and gathers one layer at a time.
"""

from collections.abc import Iterable

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


class FSDP2Strategy(ModelParallelStrategy):
    """Over all devices of all machines; a checkpoint is one file, as a single device writes it."""

    def __init__(self, reshard_after_forward: bool = True) -> None:
        """reshard_after_forward: whether each layer frees its full weights after the forward pass.

        If False, they stay until the backward pass, and only gradients and optimizer state are
        sharded all the time (ZeRO stage 2): more memory, less communication.
        """
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def uses_fsdp(trainer: L.Trainer) -> bool:
    return isinstance(trainer.strategy, ModelParallelStrategy)


def _unsharded_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of the model before FSDP2 made a subclass of it."""
    return next(c for c in type(model).__mro__[1:] if c is not FSDPModule)


def reshard(models: Iterable[nn.Module]) -> None:
    """Frees the gathered weights of frozen models, for which no backward pass does it."""
    for model in models:
        if isinstance(model, FSDPModule):
            model.reshard()


def full_tensor(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def local_tensor(x: Tensor) -> Tensor:
    """This device's shard."""
    return x.to_local() if isinstance(x, DTensor) else x


def full_model(model: PreTrainedModel) -> PreTrainedModel:
    """An unsharded copy to save: with all weights in rank 0, without any in the other ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    with torch.device("meta"):
        full: PreTrainedModel = _unsharded_class(model)(model.config)
    if weights:
        full.load_state_dict(weights, assign=True)
        full.tie_weights()
    full.generation_config = model.generation_config
    return full


def load_full_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads unsharded weights, which all ranks have read, into a module that may be sharded."""
    if any(isinstance(p, DTensor) for p in module.parameters()):
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(module, dict(weights), options=options)
    else:
        module.load_state_dict(weights)
