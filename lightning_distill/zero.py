"""A copy of the models on each device, and the optimizer's state in shards on all of them.

DeepSpeed's ZeRO, stage 2. Weights are whole, so all that reads them is as on one device.
"""

import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators.cpu import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer


class Zero(DeepSpeedStrategy):
    """A checkpoint is one file, as a single device writes it, so a run goes on on any devices."""

    handles_gradient_accumulation = False  # Lightning counts, and says when

    def __init__(self) -> None:
        super().__init__(stage=2, logging_level=logging.ERROR)
        self._groups: list[list[nn.Parameter]] = []  # whose shards the optimizer steps

    def setup_environment(self) -> None:
        on_cpu = isinstance(self.accelerator, CPUAccelerator)
        warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated")
        os.environ["DS_ACCELERATOR"] = "cpu" if on_cpu else "cuda"
        precision: Any = self.precision_plugin.precision
        self.precision_plugin = _Precision(precision)
        self.accelerator.setup_device(self.root_device)  # type: ignore[union-attr]
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def setup(self, trainer: L.Trainer) -> None:
        self.model_to_device()
        (DeepSpeedStrategy if trainer.state.fn == TrainerFn.FITTING else DDPStrategy).setup(
            self, trainer
        )

    def _format_config(self) -> None:
        # Lightning's own would train 16-bit weights where the precision is mixed.
        self._format_batch_size_and_grad_accum_config()
        mixed = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        more = {"torch_autocast": mixed} if self.precision_plugin.precision == "bf16-mixed" else {}
        assert self.config is not None
        self.config |= {"gradient_accumulation_steps": 1, **more}

    def init_deepspeed(self) -> None:
        self._initialize_deepspeed_train(self.engine)  # which it makes of the module

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None
    ) -> Any:
        import deepspeed

        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        index = self.root_device.index
        return deepspeed.initialize(
            args=Namespace(device_rank=self.local_rank if index is None else index),
            config=self.config,
            model=model,
            model_parameters=[one for group in self._groups for one in group],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )[:2]

    @property
    def engine(self) -> Any:
        """What Lightning trains instead of the module, in a fit."""
        return self.model

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """For the micro-batches of a step but the last."""
        self.engine.set_gradient_accumulation_boundary(False)
        yield
        self.engine.set_gradient_accumulation_boundary(True)

    def pre_backward(self, closure_loss: Tensor) -> None:
        self.engine.optimizer.override_loss_scale(1.0)

    def teardown(self) -> None:
        if self.model is not self.lightning_module:
            self.engine.destroy()
            for parameter in (one for group in self._groups for one in group):
                parameter.data = parameter.data.clone()  # which was a part of a group's
        super().teardown()

    # As ParallelStrategy has it; DeepSpeed's has folders of pickles.
    save_checkpoint = ParallelStrategy.save_checkpoint
    load_checkpoint = ParallelStrategy.load_checkpoint
    lightning_restore_optimizer = True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        ParallelStrategy.load_model_state_dict(self, checkpoint, strict)
        if self._groups:
            self.engine.optimizer.refresh_fp32_params()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As the same optimizer has it on a single device."""
        inner = self.engine.optimizer.optimizer
        state: dict[int, dict[str, Tensor]] = {}
        groups = []
        for group, parameters in zip(inner.param_groups, self._groups, strict=True):
            numbers = range(len(state), len(state) + len(parameters))
            groups.append({**group, "params": list(numbers)})
            (shard,) = group["params"]
            state |= {number: {} for number in numbers}
            for name, value in inner.state[shard].items():
                if value.shape == shard.shape:
                    each = self._gather(value, parameters)
                else:  # the step
                    each = [value.clone() for _ in numbers]
                for number, one in zip(numbers, each, strict=True):
                    state[number][name] = one
        return {"state": state, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        inner, (kept,) = self.engine.optimizer.optimizer, checkpoint["optimizer_states"]
        known = kept["state"]
        for group, saved in zip(inner.param_groups, kept["param_groups"], strict=True):
            (shard,) = group["params"]
            group |= {name: value for name, value in saved.items() if name != "params"}
            whole = [known[number] for number in saved["params"] if number in known]
            for name in whole[0] if whole else ():
                values = [one[name] for one in whole]
                split = values[0].ndim > 0
                inner.state[shard][name] = self._own(values, shard) if split else values[0]

    def _gather(self, shard: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
        shards = [torch.empty_like(shard) for _ in range(self.world_size)]
        dist.all_gather(shards, shard)
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.cat(shards)[: sum(sizes)]  # filled up to equal shards
        parts = zip(flat.split(sizes), parameters, strict=True)
        return [part.view_as(parameter).clone() for part, parameter in parts]

    def _own(self, values: list[Tensor], shard: Tensor) -> Tensor:
        flat = torch.cat([value.flatten() for value in values])
        filling = self.world_size * len(shard) - len(flat)
        flat = torch.cat([flat, flat.new_zeros(filling)])
        return flat[self.global_rank * len(shard) :][: len(shard)].to(shard)


class _Precision(DeepSpeedPrecision):
    """Leaves weights and inputs as they are."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data


def is_zero(trainer: L.Trainer) -> bool:
    return isinstance(trainer.strategy, Zero)


def divide(optimizer: Any, factor: Tensor) -> Tensor:
    """Multiplies the gradient by `factor` when its step is made. Returns its norm, then."""
    optimizer.override_loss_scale(1 / factor)  # by which the step divides
    norm: Tensor = optimizer.scaled_global_norm()
    return torch.where(norm < 0, torch.nan, norm * factor)  # as DeepSpeed says it is no number
