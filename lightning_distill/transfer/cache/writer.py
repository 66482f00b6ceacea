"""The teacher's predictions for the transfer set are computed once and written to shards."""

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import lightning as L
import torch
from rich.filesize import decimal
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_distill.constants import IGNORED
from lightning_distill.data.tasks.base import Examples
from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import uses_fsdp
from lightning_distill.errors import ConfigError
from lightning_distill.losses.distributions import Sparse
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.predictions import Predictions
from lightning_distill.models.sharding import shard
from lightning_distill.transfer.cache import shards

log = logging.getLogger(__name__)

TRIAL_EXAMPLES = 4  # labeled first, to estimate the remaining time
HELD_OUT_EXAMPLES = 32  # of validation, on which stored and true predictions are compared


class CacheCodec(Protocol):
    """How predictions are encoded in a cache: as tensors by name, the fields."""

    @property
    def bytes_per_token(self) -> int: ...

    def encode(self, predictions: Sequence[Predictions], uniform: Tensor) -> dict[str, Tensor]:
        """Of each teacher [N, ...] to fields [N, ...]. uniform: [N] in [0, 1), to sample with."""

    def decode(self, fields: dict[str, Tensor]) -> list[Predictions] | Sparse:
        """Fields of any leading shape to what the objective takes for the teachers."""

    def nonfinite(self, fields: dict[str, Tensor]) -> Tensor:
        """True at the positions where what was encoded was NaN or Inf."""

    def kl(self, predictions: Sequence[Predictions], fields: dict[str, Tensor]) -> Tensor:
        """KL(stored ‖ true) at each position, [N]."""


class CacheWriter(L.LightningModule):
    """Writes the shards that are missing; `trainer.predict` drives it on any device.

    A shard's content depends on its number alone, not on the device that writes it.
    validation: examples on which stored and true predictions are compared; None for an API teacher,
        whose full distributions are unknown and whose requests cost.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        codec: CacheCodec,
        examples: Examples,
        num_examples: int,
        validation: Examples | None,
        batch_size: int,
        folder: Path,
    ) -> None:
        super().__init__()
        # A device may have no shard to write.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.teachers: Any = nn.ModuleList(teachers)
        self.codec, self.examples, self.folder = codec, examples, folder
        self.validation, self.batch_size = validation, batch_size
        self.ranges = shards.shard_ranges(num_examples, examples.positions)
        self.held_out_kl = MeanMetric()  # KL(stored ‖ true), in nats per token
        self.kl: float | None = None
        self._trial: dict[str, Tensor] | None = None  # fields of an API teacher's first batch
        self._written: list[dict[str, Tensor]] = []  # fields of the shard being written

    @property
    def content(self) -> dict[str, Any]:
        """What the artifact's manifest records."""
        return {
            "bytes_per_token": self.codec.bytes_per_token,
            "positions": self.examples.positions,
            "kl": self.kl,
        }

    @property
    def uses_fsdp(self) -> bool:
        """Whether all devices must run the teachers equally often."""
        return uses_fsdp(self.trainer) and self.validation is not None

    def configure_model(self) -> None:
        if self.uses_fsdp:
            shard(self, [teacher.predict for teacher in self.teachers])

    def predict_dataloader(self) -> list[shards.ShardBatches]:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        numbers = range(rank, len(self.ranges), world_size)
        self.missing = [n for n in numbers if not shards.shard_file(self.folder, n).exists()]
        ranges = [self.ranges[n] for n in self.missing]
        batches = [shards.ShardBatches(self.examples, ranges, self.batch_size)]
        if self.uses_fsdp:  # a device with fewer batches takes part in the others' forward passes
            batches[0].pad(max(process_group.all_gather(len(batches[0]))))
        if self.validation is not None:
            held_out = range(min(HELD_OUT_EXAMPLES, len(self.validation)))
            batches.append(shards.ShardBatches(self.validation, [held_out], self.batch_size))
        return batches

    def on_predict_start(self) -> None:
        """Raises ConfigError where the disk is too small; logs an estimate of size and time."""
        if not self.missing:
            return
        tokens = sum(len(self.ranges[n]) for n in self.missing) * self.examples.positions
        size = tokens * self.codec.bytes_per_token * self.trainer.world_size
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ConfigError(
                f"The teacher's predictions take {decimal(size)}, and {self.folder} has "
                f"{decimal(free)} left. Free some, set another paths.outputs, or store less a "
                "token: transfer.k, transfer.draws, transfer.bits."
            )
        few = sum(len(self.ranges[n]) for n in self.missing) <= 4 * TRIAL_EXAMPLES
        if self.uses_fsdp or few:  # a trial would need all devices, of which some may miss no shard
            return
        log.info(
            "the teacher labels %s tokens: %s, %s bytes a token, about %.0f seconds",
            f"{tokens * self.trainer.world_size:,}",
            decimal(size),
            self.codec.bytes_per_token,
            self._seconds_per_token() * tokens,
        )

    def _seconds_per_token(self) -> float:
        """Of a trial batch. That of an API teacher is kept, so that it is requested once."""
        uses_api = self.validation is None
        batch_size = self.batch_size if uses_api else TRIAL_EXAMPLES
        batches = shards.ShardBatches(self.examples, [self.ranges[self.missing[0]]], batch_size)
        batch = self.trainer.strategy.batch_to_device(next(iter(batches)))
        if not uses_api:
            self.label(batch)  # warm up
        start = time.perf_counter()
        fields = self.label(batch)
        self._trial = fields if uses_api else None
        return (time.perf_counter() - start) / batch["labels"].numel()

    def predict_step(self, batch: dict[str, Tensor], _: int, dataloader_idx: int = 0) -> None:
        fields, self._trial = self._trial or self.label(batch), None
        if dataloader_idx:
            self._update_kl(batch, fields)
        elif self.missing:  # else the batch was padding, see `ShardBatches.pad`
            self._check_finite(batch, fields)
            self._write(batch, fields)

    def _write(self, batch: dict[str, Tensor], fields: dict[str, Tensor]) -> None:
        """Adds a batch to its shard, and writes that when it is complete."""
        rows = [{k: v[i].cpu() for k, v in batch.items()} for i in range(len(batch["block"]))]
        fields[shards.CHECKSUM] = torch.stack([shards.checksum(row) for row in rows])
        self._written.append(fields)
        number = self.missing[0]
        if int(batch["block"][-1]) == self.ranges[number][-1]:
            shards.write_shard(shards.shard_file(self.folder, number), self._written)
            self.missing, self._written = self.missing[1:], []

    def _check_finite(self, batch: dict[str, Tensor], fields: dict[str, Tensor]) -> None:
        """Raises ConfigError where a prediction that counts is NaN or Inf."""
        nonfinite = self.codec.nonfinite(fields) & (batch["labels"] != IGNORED)
        by_example = nonfinite.view(len(batch["block"]), -1).any(1).tolist()
        if any(by_example):
            block = int(batch["block"][by_example.index(True)])
            refuse_nonfinite(self.teachers, f"block {block} of the transfer set", self.folder)

    def on_predict_epoch_end(self) -> None:
        # Before `on_predict_end`: the devices' values are combined while still on the devices.
        if self.validation is not None:
            self.kl = float(self.held_out_kl.compute())

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("labelled")

    @torch.no_grad()
    def label(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The fields [B, T, ...] of a batch."""
        predictions = [teacher(batch) for teacher in self.teachers]
        shape, positions = batch["labels"].shape, self.examples.positions
        uniform = torch.cat([_uniform(int(b), positions) for b in batch["block"]])
        uniform = uniform.to(batch["labels"].device)
        parts = [
            self.codec.encode([one.at(chunk) for one in predictions], uniform[chunk])
            for chunk in _chunks(predictions[0], len(uniform))
        ]
        return {name: torch.cat([p[name] for p in parts]).unflatten(0, shape) for name in parts[0]}

    def _update_kl(self, batch: dict[str, Tensor], fields: dict[str, Tensor]) -> None:
        predictions = [teacher(batch) for teacher in self.teachers]
        fields = {name: x.flatten(0, batch["labels"].ndim - 1) for name, x in fields.items()}
        kept = (batch["labels"].flatten() != IGNORED).nonzero()[:, 0]
        for chunk in _chunks(predictions[0], len(kept)):
            positions = kept[chunk]
            stored = {name: x[positions] for name, x in fields.items()}
            true = [one.at(positions) for one in predictions]
            self.held_out_kl.update(self.codec.kl(true, stored))


def _chunks(predictions: Predictions, count: int) -> list[slice]:
    """Slices of positions whose logits are in memory at a time."""
    size = max(128, 2**20 // predictions.vocab_size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _uniform(block: int, positions: int) -> Tensor:
    """The same random numbers for a block whichever device labels it, [T]."""
    return torch.rand(positions, generator=torch.Generator().manual_seed(block))


def predict(writer: L.LightningModule, trainer: L.Trainer) -> None:
    """Runs a writer; Lightning ends an interrupted one as if it were finished."""
    trainer.predict(writer, return_predictions=False)
    if trainer.interrupted:
        raise KeyboardInterrupt


def refuse_nonfinite(teachers: Iterable[Frozen], where: str, folder: Path) -> NoReturn:
    """Deletes what the folder has of these teachers, and raises ConfigError."""
    for file in folder.iterdir():
        file.unlink(missing_ok=True)  # another device may delete it too
    names = " or ".join(teacher.name for teacher in teachers)
    raise ConfigError(
        f"The teacher {names} predicts NaN or Inf, first at {where}; nothing of it is stored. "
        "Check its weights, or set trainer.precision=32-true."
    )
