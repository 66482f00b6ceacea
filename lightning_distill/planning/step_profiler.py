"""A callback that measures the batches of a run."""

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lightning_distill.training.cost import peak_memory_mb, reset_peak_memory


def _forward_flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward_flops(out: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(out, q, k, v)


# Attention on the CPU, which PyTorch's counter leaves out.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}


class StepProfiler(Callback):
    """Appends a line of JSON to `file` for each stage of each run of a trainer.

    A line has: module, its class name; stage, one of train, validate, test and predict; seconds of
    each batch, and its examples; flops, the mean of a batch, 0 where not counted; memory_mb, the
    peak. Held-out stages add limit, the trainer's limit of batches. Training adds micro_batches,
    those of a step, and save_seconds, of a checkpoint.
    warmup: the optimizer steps whose FLOPs are counted, which slows them down.
    """

    def __init__(self, file: str, warmup: int) -> None:
        self.file, self.warmup = Path(file), warmup

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self._counter: FlopCounterMode | None = None
        reset_peak_memory()

    def _start(self, stage: str, index: int, counts_flops: bool = False, **values: Any) -> None:
        self.records.setdefault(stage, {"seconds": [], "examples": [], "flops": [], **values})
        if not index:
            self._mark = time.perf_counter()
        if counts_flops:
            self._counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            self._counter.__enter__()

    def _end(self, stage: str, batch: Any) -> None:
        record = self.records[stage]
        record["examples"].append(len(batch["labels"]) if isinstance(batch, dict) else 1)
        if counter := self._stop_counter():
            record["flops"].append(counter.get_total_flops())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        record["seconds"].append(now - self._mark)
        self._mark = now  # the time between two batches counts toward the second

    def _stop_counter(self) -> FlopCounterMode | None:
        counter, self._counter = self._counter, None
        if counter:
            counter.__exit__(None, None, None)
        return counter

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop_counter()  # it would slow down everything that follows

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        micro_batches = trainer.accumulate_grad_batches
        self._start("train", index, index < self.warmup, micro_batches=micro_batches)

    def on_train_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, index: int
    ) -> None:
        self._end("train", batch)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        # The checkpoint of the last step is saved in between.
        self.records["train"]["save_seconds"] = time.perf_counter() - self._mark

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._start("validate", index, limit=trainer.limit_val_batches)

    def on_validation_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._end("validate", batch)

    def on_test_batch_start(
        self, trainer: Any, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._start("test", index, limit=trainer.limit_test_batches)

    def on_test_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._end("test", batch)

    def on_predict_batch_start(
        self, trainer: Any, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        if not dataloader_idx:
            self._start("predict", index, not index)

    def on_predict_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        if not dataloader_idx:  # the second loader brings held-out blocks
            self._end("predict", batch)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        common = {"module": type(pl_module).__name__, "memory_mb": peak_memory_mb()}
        with self.file.open("a") as stream:
            for name, record in self.records.items():
                flops = mean(record["flops"]) if record["flops"] else 0
                line = {**common, "stage": name, **record, "flops": flops}
                stream.write(json.dumps(line) + "\n")
