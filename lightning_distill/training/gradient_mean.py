"""Gradients averaged over the tokens of an optimizer step, on all of its devices."""

from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lightning_distill.distributed.fsdp import full_tensor, local_tensor
from lightning_distill.losses.terms import Terms

# Keeps sums over tokens within the range of 16-bit gradients; a power of two rounds nothing.
LOSS_SCALE = 2.0**-10

Sums = dict[str, tuple[Tensor | int, Tensor | int]]  # of each term: its sum, and its tokens


@dataclass
class Step:
    """One optimizer step: sums over its micro-batches, and what `GradientMean` makes of them.

    details: means of the last micro-batch, over `detail_tokens` tokens.
    loss, norm: the mean loss and the norm of the mean gradient, on all devices; `norm` is sharded
    where the gradients are.
    """

    sums: Sums = field(default_factory=dict)
    details: dict[str, Tensor] = field(default_factory=dict)
    detail_tokens: Tensor | int = 0
    loss: Any = None
    norm: Any = None

    def add(self, terms: Terms) -> None:
        # Each term counts its own tokens: some micro-batches lack a term.
        for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
            total, tokens = self.sums.get(name, (0, 0))
            self.sums[name] = total + value, tokens + terms.tokens
        self.details, self.detail_tokens = terms.details, terms.tokens

    @property
    def full_norm(self) -> Tensor:
        return full_tensor(self.norm)

    def keep_if(self, valid: Tensor) -> None:
        """Empties the sums of a step that is skipped. valid: [], on the device."""
        self.sums = {
            name: (torch.as_tensor(total).where(valid, 0), tokens * valid)
            for name, (total, tokens) in self.sums.items()
        }


class MeanOfSum(torch.autograd.Function):
    """The mean of a micro-batch's losses, to be read; its gradient is that of their scaled sum."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, tokens: Tensor) -> Tensor:
        return total / tokens.clamp(min=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * LOSS_SCALE, None


class GradientMean(Callback):
    """Divides a step's gradients by its number of tokens, and computes their norm."""

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        step: Any = module.running_step
        step.loss, tokens = sum_over_devices(trainer, *step.sums["loss"])
        # Lightning has divided by the number of micro-batches, the strategy by that of devices.
        devices = trainer.world_size
        factor = trainer.accumulate_grad_batches * devices / LOSS_SCALE / tokens.clamp(min=1)
        gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
        torch._foreach_mul_([local_tensor(gradient) for gradient in gradients], factor)
        step.norm = get_total_norm(gradients)


def sum_over_devices(
    trainer: L.Trainer, total: Tensor | int, tokens: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Both numbers, each summed over all devices."""
    device = trainer.strategy.root_device
    local_sums = torch.stack([torch.as_tensor(x, device=device).float() for x in (total, tokens)])
    total_sum, token_sum = trainer.strategy.reduce(local_sums, reduce_op="sum")
    return total_sum, token_sum


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """In the optimizer's order, in which Lightning sums up their norm too."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
