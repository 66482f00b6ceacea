"""A callback that notes what the batches of a run cost."""

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lightning_distill.training.cost import peak_mb, reset_peak

WARM = 2  # optimizer steps at the beginning, whose computing is counted and whose time is not


def _forward(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(out: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(out, q, k, v)


# Attention on the processor, which torch's counter does not know.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


class StepProfiler(Callback):
    """Notes the seconds of each batch and, of the first ones, how much is computed.

    Writes a line of JSON into `file` for each stage of a trainer's run: module, stage, seconds
    [batches], flops of a batch, memory_mb, devices; of held-out text also whole, the batches that
    there are without limits; of training logged [batches], parts, the batches of a step, and save,
    the seconds of a checkpoint.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.laps: dict[str, list[float]] = {}
        self.flops: dict[str, list[int]] = {}
        self.more: dict[str, dict[str, Any]] = {}
        self._counter: FlopCounterMode | None = None
        reset_peak()

    def _begin(self, stage: str, index: int, counted: bool) -> None:
        if not index:
            self._mark = time.perf_counter()
        if counted:
            self._counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
            self._counter.__enter__()

    def _stop(self) -> FlopCounterMode | None:
        counter, self._counter = self._counter, None
        if counter:
            counter.__exit__(None, None, None)
        return counter

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop()  # it would go on counting, and slow down all that follows

    def _end(self, stage: str) -> None:
        if counter := self._stop():
            self.flops.setdefault(stage, []).append(counter.get_total_flops())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps.setdefault(stage, []).append(now - self._mark)
        self._mark = now  # what lies between two batches belongs to the second

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        noted = {"logged": [], "parts": trainer.accumulate_grad_batches}
        self.more.setdefault("train", noted)["logged"].append(pl_module.logs_now)
        self._begin("train", index, index < WARM)

    def on_train_batch_end(self, *args: Any) -> None:
        self._end("train")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.more["train"]["save"] = time.perf_counter() - self._mark
        self.more["validate"] = {"whole": len(trainer.val_dataloaders)}

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._begin("validate", index, False)

    def on_validation_batch_end(self, *args: Any) -> None:
        self._end("validate")

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self.more["test"] = {"whole": len(trainer.test_dataloaders)}

    def on_test_batch_start(
        self, trainer: Any, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._begin("test", index, False)

    def on_test_batch_end(self, *args: Any) -> None:
        self._end("test")

    def on_predict_batch_start(
        self, trainer: Any, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        if not dataloader_idx:
            self._begin("predict", index, not index and trainer.num_predict_batches[0] > 1)

    def on_predict_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        if not dataloader_idx:  # the other one is of held-out blocks
            self._end("predict")

    @rank_zero_only
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        with self.file.open("a") as stream:
            for name, seconds in self.laps.items():
                counted = self.flops.get(name)
                note = {
                    "module": type(pl_module).__name__,
                    "stage": name,
                    "seconds": seconds,
                    "flops": mean(counted) if counted else 0,
                    "memory_mb": peak_mb(),
                    **self.more.get(name, {}),
                }
                stream.write(json.dumps(note) + "\n")
