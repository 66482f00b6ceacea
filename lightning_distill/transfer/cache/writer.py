"""The frozen teacher reads the transfer set once, and its predictions are written to shards."""

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
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.output_head import Predictions
from lightning_distill.models.sharding import shard
from lightning_distill.transfer.cache import shards

log = logging.getLogger(__name__)

TRIAL = 4  # blocks that are labelled to tell how long the rest will take
HELD_OUT = 32  # validation blocks on which stored and true predictions are compared


class Layout(Protocol):
    """How predictions are kept."""

    @property
    def bytes_per_token(self) -> int: ...

    def encode(self, said: Sequence[Predictions], uniform: Tensor) -> dict[str, Tensor]:
        """Of each teacher [N, ...], uniform: numbers [N] to draw with. Fields [N, ...]."""

    def broken(self, fields: dict[str, Tensor]) -> Tensor:
        """At which positions what was encoded is no number."""

    def kl(self, said: Sequence[Predictions], fields: dict[str, Tensor]) -> Tensor:
        """KL(stored ‖ true) of each position, [N]."""


class CacheWriter(L.LightningModule):
    """Writes the shards that are not there yet; `trainer.predict` drives it on any device.

    Each device writes shards of its own, the same ones whoever wrote the others.
    validation: where stored and true predictions are compared; None for a teacher behind a server,
    which does not know all of the true ones and is asked no more than once.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        layout: Layout,
        blocks: Examples,
        num_blocks: int,
        validation: Examples | None,
        batch_size: int,
        folder: Path,
    ) -> None:
        super().__init__()
        # Of the shards that are not there yet, a device may have none.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.teachers: Any = nn.ModuleList(teachers)
        self.layout, self.blocks, self.folder = layout, blocks, folder
        self.validation, self.batch_size = validation, batch_size
        self.ranges = shards.ranges(num_blocks, blocks.positions)
        self.held_out_kl = MeanMetric()  # between stored and true predictions, in nats a token
        self.kl: float | None = None
        self._first: dict[str, Tensor] | None = None  # of a served teacher's first batch
        self._done: list[dict[str, Tensor]] = []

    @property
    def in_shards(self) -> bool:
        """Whether all devices have to ask the teachers as often; a served one has no weights."""
        return uses_fsdp(self.trainer) and self.validation is not None

    def configure_model(self) -> None:
        if self.in_shards:
            shard(self, [one.predict for one in self.teachers])

    def predict_dataloader(self) -> list[shards.Batches]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        numbers = range(rank, len(self.ranges), world)
        self.missing = [n for n in numbers if not shards.shard_file(self.folder, n).exists()]
        own = [self.ranges[n] for n in self.missing]
        batches = [shards.Batches(self.blocks, own, self.batch_size)]
        if self.in_shards:  # a device that has less to do helps the others
            batches[0].fill(max(process_group.all_gather(len(batches[0]))))
        if self.validation is not None:
            held_out = range(min(HELD_OUT, len(self.validation)))
            batches.append(shards.Batches(self.validation, [held_out], self.batch_size))
        return batches

    def on_predict_start(self) -> None:
        """Says what it will take, and refuses where the disk has no room for it."""
        if not self.missing:
            return
        tokens = sum(len(self.ranges[n]) for n in self.missing) * self.blocks.positions
        size = tokens * self.layout.bytes_per_token * self.trainer.world_size
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ConfigError(
                f"The teacher's predictions take {decimal(size)}, and {self.folder} has "
                f"{decimal(free)} left. Free some, set another paths.outputs, or keep less a "
                "token: transfer.k, transfer.draws, transfer.bits."
            )
        if self.in_shards:  # a trial would need the other devices, some of which may miss nothing
            return
        served = self.validation is None
        trial = self.batch_size if served else TRIAL
        batches = shards.Batches(self.blocks, [self.ranges[self.missing[0]]], trial)
        batch = self.trainer.strategy.batch_to_device(next(iter(batches)))
        if not served:
            self.label(batch)  # the first time of everything is slow
        start = time.perf_counter()
        fields = self.label(batch)
        self._first = fields if served else None
        seconds = (time.perf_counter() - start) / batch["labels"].numel() * tokens
        log.info(
            "the teacher labels %s tokens: %s, %s bytes a token, about %.0f seconds",
            f"{tokens * self.trainer.world_size:,}",
            decimal(size),
            self.layout.bytes_per_token,
            seconds,
        )

    def predict_step(self, batch: dict[str, Tensor], _: int, dataloader_idx: int = 0) -> None:
        fields, self._first = self._first or self.label(batch), None
        if not dataloader_idx and not self.missing:  # it was for the others
            return
        if dataloader_idx:
            self._compare(batch, fields)
            return
        self._refuse_broken(batch, fields)
        rows = [{k: v[i].cpu() for k, v in batch.items()} for i in range(len(batch["block"]))]
        fields[shards.CHECKSUM] = torch.stack([shards.checksum(row) for row in rows])
        self._done.append(fields)
        number = self.missing[0]
        if int(batch["block"][-1]) == self.ranges[number][-1]:
            shards.write_shard(shards.shard_file(self.folder, number), self._done)
            self.missing, self._done = self.missing[1:], []

    def _refuse_broken(self, batch: dict[str, Tensor], fields: dict[str, Tensor]) -> None:
        """Raises ConfigError where a prediction is no number, and leaves none of those before."""
        broken = self.layout.broken(fields) & (batch["labels"] != IGNORED)
        found = broken.view(len(batch["block"]), -1).any(1).tolist()
        if not any(found):
            return
        block = int(batch["block"][found.index(True)])
        refuse_broken(self.teachers, f"block {block} of the transfer set", self.folder)

    def on_predict_epoch_end(self) -> None:
        """Over all devices, as long as the numbers are still on them."""
        if self.validation is not None:
            self.kl = float(self.held_out_kl.compute())

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("labelled")

    @torch.no_grad()
    def label(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fields [B, T, ...] of a batch."""
        said = [teacher(batch) for teacher in self.teachers]
        shape, each = batch["labels"].shape, self.blocks.positions
        uniform = torch.cat([_uniform(int(b), each) for b in batch["block"]])
        uniform = uniform.to(batch["labels"].device)
        parts = [
            self.layout.encode([one.at(part) for one in said], uniform[part])
            for part in _positions(said[0], len(uniform))
        ]
        return {name: torch.cat([p[name] for p in parts]).unflatten(0, shape) for name in parts[0]}

    def _compare(self, batch: dict[str, Tensor], fields: dict[str, Tensor]) -> None:
        """Adds up KL(stored ‖ true) where neither teacher nor student has learned."""
        said = [teacher(batch) for teacher in self.teachers]
        fields = {name: x.flatten(0, batch["labels"].ndim - 1) for name, x in fields.items()}
        kept = (batch["labels"].flatten() != IGNORED).nonzero()[:, 0]
        for part in _positions(said[0], len(kept)):
            own = {name: x[kept[part]] for name, x in fields.items()}
            kl = self.layout.kl([one.at(kept[part]) for one in said], own)
            self.held_out_kl.update(kl)


def _positions(said: Predictions, count: int) -> list[slice]:
    """Positions whose logits are held at a time."""
    size = max(256, 2**20 // said.vocab_size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _uniform(block: int, length: int) -> Tensor:
    """Numbers of a block's own, so that whoever labels it draws the same."""
    return torch.rand(length, generator=torch.Generator().manual_seed(block))


def refuse_broken(teachers: Iterable[Frozen], where: str, folder: Path) -> NoReturn:
    """Empties the folder of what they have said so far, and raises ConfigError."""
    for file in folder.iterdir():
        file.unlink(missing_ok=True)  # another device may have met it too
    named = " or ".join(one.name for one in teachers)
    raise ConfigError(
        f"The teacher {named} predicts what is no number, first at {where}; nothing of it is "
        "stored. Look at its weights, or set trainer.precision=32-true."
    )
