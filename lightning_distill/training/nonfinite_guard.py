"""Steps whose loss or gradient is NaN or Inf are skipped.

A skipped step changes no weight and no state of the optimizer. It is counted, and the examples of
its batch are written to `skipped.jsonl`.
"""

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import local_tensor, uses_fsdp
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
MAX_PENDING = 100  # checked steps whose result the CPU has not read yet


class NonFiniteGuard(Callback):
    """Checks each optimizer step of one training.

    max_in_a_row: how many consecutive steps may be skipped; one more raises ConfigError.
    file: where skipped steps are recorded, a JSON line each.

    A fused optimizer gets the result as `found_inf`, on the device, so that no step synchronizes.
    For other optimizers, the gradients of a skipped step are set to None.
    With precision 16-mixed the GradScaler skips steps itself, so nothing is checked.
    """

    def __init__(self) -> None:
        self.max_in_a_row, self.file = 0, Path(SKIPPED)
        self.count = self.in_a_row = 0
        self._examples: list[Tensor] = []  # of the running step
        self._pending: list[tuple[int, Tensor, list[Tensor]]] = []

    def reset(self) -> None:
        """Discards the running step and the checks that are not flushed."""
        self._examples, self._pending = [], []

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        if "block" in batch:
            self._examples.append(batch["block"])

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.precision == "16-mixed":
            return
        step: Any = module.running_step
        fused = not uses_fsdp(trainer) and bool(optimizer.defaults.get("fused"))
        step.keep_if(
            self.check(module.global_step + 1, optimizer, step.loss, step.full_norm, fused)
        )

    def check(
        self, step: int, optimizer: Optimizer, loss: Tensor, norm: Tensor, fused: bool
    ) -> Tensor:
        """Whether the step is finite: a boolean [], on the device.

        loss, norm: [], over all devices. fused: whether the optimizer heeds `found_inf`.
        """
        finite = loss.isfinite() & norm.isfinite()
        self._pending.append((step, torch.stack([finite, loss, norm]), self._examples))
        self._examples = []
        if fused:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        if fused and norm.device.type != "cpu" and len(self._pending) < MAX_PENDING:
            return finite
        if self.flush() and not fused:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        return finite

    def flush(self) -> bool:
        """Counts the skipped steps among those pending. Returns whether the last one was skipped.

        Raises ConfigError where more than `max_in_a_row` consecutive steps were.
        """
        if not self._pending:
            return self.in_a_row > 0
        pending, self._pending = self._pending, []
        checks = torch.stack([numbers for _, numbers, _ in pending]).tolist()
        for (step, _, examples), (finite, loss, norm) in zip(pending, checks, strict=True):
            if finite:
                self.in_a_row = 0
                continue
            self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
            self._record(step, loss, norm, examples)
            if self.in_a_row > self.max_in_a_row:
                raise self._diverged(step)
        return self.in_a_row > 0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raises ConfigError where the training, which is one epoch, ends with NaN or Inf."""
        self.flush()
        broken = not all(local_tensor(p).isfinite().all() for p in module.parameters())
        if process_group.any_rank(broken) or self.in_a_row > 1:
            raise self._diverged(module.global_step)

    def _record(self, step: int, loss: float, norm: float, examples: list[Tensor]) -> None:
        local = [number for batch in examples for number in batch.flatten().tolist()]
        numbers = process_group.all_gather(local)
        if not process_group.is_rank_zero():
            return
        log.warning(
            "step %s is skipped: loss %g, gradient norm %g; its examples are recorded in %s",
            *(step, loss, norm, self.file),
        )
        entry = {
            "step": step,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "examples": [number for of_rank in numbers for number in of_rank],
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as lines:
            lines.write(f"{json.dumps(entry)}\n")

    def _diverged(self, step: int) -> ConfigError:
        steps = (
            f"in {self.in_a_row} consecutive steps, up to step" if self.in_a_row > 1 else "in step"
        )
        message = f"Training diverged: loss or gradient is NaN or Inf {steps} {step}"
        if self.in_a_row == step:
            return ConfigError(
                f"{message}, from the first step on. The teacher's predictions or the initial "
                f"weights are NaN or Inf; the examples are recorded in {self.file}."
            )
        return ConfigError(
            f"{message}; the examples are recorded in {self.file}. Lower optimizer.lr "
            "(teacher.optimizer.lr of a teacher), or raise max_skipped_steps."
        )
