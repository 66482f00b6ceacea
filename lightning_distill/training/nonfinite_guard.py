"""A step without a finite loss and gradient is left out: it changes no weight and no moment of the
optimizer. It is counted, and its examples are noted for a look."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
LONGEST = 100  # steps that are judged before the processor hears of it


class NonFiniteGuard:
    """Of one training.

    most: steps in a row that may be left out. file: where they are noted, a line each.
    A fused optimizer is told on the device, so that no step waits for the processor; others have
    their gradients taken away.
    """

    def __init__(self) -> None:
        self.most, self.file = 0, Path(SKIPPED)
        self.count = self.in_a_row = 0
        self._examples: list[Tensor] = []  # of the step that is being made
        self._pending: list[tuple[int, Tensor, list[Tensor]]] = []

    def note(self, batch: dict[str, Any]) -> None:
        if "block" in batch:
            self._examples.append(batch["block"])

    def break_off(self) -> None:
        """Forgets what is not settled."""
        self._examples, self._pending = [], []

    def judge(
        self, step: int, optimizer: Optimizer, loss: Tensor, norm: Tensor, sharded: bool
    ) -> Tensor:
        """Whether the step counts, on the device. loss, norm: of all devices."""
        good = loss.isfinite() & norm.isfinite()
        fused = not sharded and optimizer.defaults.get("fused")
        self._pending.append((step, torch.stack([good, loss, norm]), self._examples))
        self._examples = []
        if fused:
            optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        if fused and norm.device.type != "cpu" and len(self._pending) < LONGEST:
            return good
        if self.settle() and not fused:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        return good

    def settle(self) -> bool:
        """Counts what was left out since the last time. Returns whether the last step was.

        Raises ConfigError where it was one too many.
        """
        if not self._pending:
            return self.in_a_row > 0
        pending, self._pending = self._pending, []
        judged = torch.stack([numbers for _, numbers, _ in pending]).tolist()
        for (step, _, examples), (good, loss, norm) in zip(pending, judged, strict=True):
            if good:
                self.in_a_row = 0
                continue
            self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
            self._write(step, loss, norm, examples)
            if self.in_a_row > self.most:
                raise self.diverged(step)
        return self.in_a_row > 0

    def _write(self, step: int, loss: float, norm: float, examples: list[Tensor]) -> None:
        numbers = process_group.all_gather(
            [n for batch in examples for n in batch.flatten().tolist()]
        )
        if not process_group.is_rank_zero():
            return
        log.warning(
            "step %s is left out: its loss is %g, the norm of its gradient %g; its examples are "
            "noted in %s", step, loss, norm, self.file,
        )  # fmt: skip
        known = {"step": step, "loss": str(loss), "gradient_norm": str(norm)}
        line = json.dumps(known | {"examples": [n for own in numbers for n in own]})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as lines:
            lines.write(f"{line}\n")

    def diverged(self, step: int) -> ConfigError:
        many = f"{self.in_a_row} steps in a row, up to" if self.in_a_row > 1 else "step"
        what = f"Training diverged: no finite loss and gradient at {many} {step}"
        if self.in_a_row == step:
            return ConfigError(
                f"{what}, from the first one on. What the teacher predicts, or the weights that "
                f"training starts from, are no numbers; the examples are noted in {self.file}."
            )
        return ConfigError(
            f"{what}; the examples are noted in {self.file}. Lower optimizer.lr "
            "(teacher.optimizer.lr of a teacher), or raise max_skipped_steps."
        )
