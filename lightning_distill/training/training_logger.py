"""What a training logs every `trainer.log_every_n_steps` steps."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lightning_distill.training.gradient_mean import Step, Sums, sum_over_devices


class TrainingLogger(Callback):
    """Logs the means since the last logged step, the gradient's norm, and the speed.

    Sums stay on the device between logged steps, so that other steps do not synchronize.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: Sums = {}
        self._last = (time.perf_counter(), 0, 0.0)  # time, step, seconds waited for data

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        owner: Any = module
        step: Step = owner.running_step
        for name, (total, tokens) in step.sums.items():
            total_before, tokens_before = self._sums.get(name, (0, 0))
            self._sums[name] = total_before + total, tokens_before + tokens
        step.sums = {}
        if owner.logs_now:
            self._log(trainer, owner, optimizer, step)

    def _log(self, trainer: L.Trainer, module: Any, optimizer: Optimizer, step: Step) -> None:
        sums, self._sums = self._sums, {}
        details = step.details
        if trainer.world_size > 1:
            sums = {name: sum_over_devices(trainer, *both) for name, both in sums.items()}
            details = {
                name: _mean_over_devices(trainer, name, value, step.detail_tokens)
                for name, value in details.items()
            }
        guard = module.guard
        guard.flush()
        tokens = sums["loss"][1]
        values: dict[str, Any] = {}
        if tokens:
            values |= {name: total / n for name, (total, n) in sums.items()}
        if not guard.in_a_row:
            values |= details | {"gradient_norm": step.full_norm}
        if guard.count:
            values["skipped_steps"] = float(guard.count)
        values["learning_rate"] = optimizer.param_groups[0]["lr"]
        values["tokens"] = float(module.global_tokens_seen)
        values["seconds"] = module.seconds_trained
        values |= self._speed(trainer, module.global_step + 1, tokens)
        module.log_dict({f"train/{name}": value for name, value in values.items()})
        if "loss" in values:
            module.log("loss", values["loss"], prog_bar=True, logger=False)

    def _speed(self, trainer: L.Trainer, step: int, tokens: Any) -> dict[str, Any]:
        """Tokens a second, and the seconds a step that training waited for data."""
        waited = getattr(trainer.train_dataloader, "wait_seconds", 0.0)
        now, last = (time.perf_counter(), step, waited), self._last
        self._last = now
        if not last[1]:  # the first interval includes the start-up
            return {}
        return {
            "tokens_per_second": tokens / (now[0] - last[0]),
            "data_seconds": (waited - last[2]) / (step - last[1]),
        }


def _mean_over_devices(
    trainer: L.Trainer, name: str, value: Tensor, tokens: Tensor | int
) -> Tensor:
    """Of a mean over tokens, or of a norm divided by their number."""
    is_norm = name.endswith("_norm")
    part = value * tokens
    total, count = sum_over_devices(trainer, part.square() if is_norm else part, tokens)
    return (total.sqrt() if is_norm else total) / count.clamp(min=1)
