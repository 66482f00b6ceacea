"""The teacher writes the sequences of a transfer set into files, one a batch."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.generation import Numbers, Sampling, generate, seed_of
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer import vllm
from lightning_distill.transfer.cache.writer import refuse_broken

log = logging.getLogger(__name__)

TRIAL = 8  # tokens that are written to tell how long the rest will take


@dataclass(frozen=True)
class Plan:
    """What is written: everything that decides it but teacher and prompts."""

    num_sequences: int
    prompt_length: int
    length: int
    sampling: Sampling
    seed: int
    batch_size: int

    @property
    def batches(self) -> list[range]:
        starts = range(0, self.num_sequences, self.batch_size)
        return [range(i, min(i + self.batch_size, self.num_sequences)) for i in starts]


class Writer(L.LightningModule):
    """Writes the files that are not there yet, one a batch; `trainer.predict` drives it.

    Each device writes files of its own, the same ones whoever wrote the others. Of several
    teachers, each writes every so many-th batch.
    """

    def __init__(
        self, teacher: Teacher, source: Dataset[dict[str, Any]], plan: Plan, folder: Path
    ) -> None:
        super().__init__()
        # Of the files that are not there yet, a device may have none.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.teachers: Any = nn.ModuleList()
        self.numbers: list[Numbers] = []
        self.data, self.tokenizer = teacher.data, teacher.data.tokenizer
        self.source: Any = source
        self.plan, self.folder = plan, folder
        quantized = any(map(pretrained.is_quantized, teacher.models))
        if vllm.usable(self.data, plan.sampling) and not quantized:
            self.scratch = TemporaryDirectory()  # gone with this object
            places = [Path(self.scratch.name) / str(i) for i in range(len(teacher.load))]
            self.writers: list[Any] = [
                vllm.VLLM(model, self.tokenizer, plan.length, place, self.data.stop_token_ids)
                for model, place in zip(teacher.models, places, strict=True)
            ]
            teacher.release()
        else:
            self.teachers.extend(teacher.frozen())
            self.numbers = [Numbers() for _ in self.teachers]
            self.writers = [
                partial(
                    generate,
                    one.model,
                    self.tokenizer,
                    stops=self.data.stop_token_ids,
                    watch=numbers,
                )
                for one, numbers in zip(self.teachers, self.numbers, strict=True)
            ]

    def configure_model(self) -> None:
        """Each device has teachers of its own, whole: they generate at their own pace."""

    def predict_dataloader(self) -> DataLoader:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        numbers = range(rank, len(self.plan.batches), world)
        self.missing = [n for n in numbers if not _file(self.folder, n).exists()]
        return DataLoader(self.missing, batch_size=None)  # type: ignore[arg-type]

    def on_predict_start(self) -> None:
        """Says what it will take."""
        if not self.missing:
            return
        beginnings = self.prompts(self.missing[0])
        begun = max(map(len, beginnings)) if self.data.continues_prompt else 0
        length = min(begun + TRIAL, self.plan.length)
        start = time.perf_counter()
        self.generate(beginnings, length, 0)
        seconds = (time.perf_counter() - start) / TRIAL * (self.plan.length - length + TRIAL)
        log.info(
            "the teacher writes %s sequences of up to %s tokens: about %.0f seconds",
            f"{sum(len(self.plan.batches[n]) for n in self.missing) * self.trainer.world_size:,}",
            self.plan.length,
            seconds * len(self.missing),
        )

    def predict_step(self, number: int, _: int) -> None:
        beginnings = self.prompts(number)
        found = self.generate(beginnings, self.plan.length, number)
        self._refuse_broken(number)
        lines = []
        for own, new in zip(beginnings, found, strict=True):
            prompt, text = self.tokenizer.decode(own), self.tokenizer.decode(new, True)
            lines.append({"prompt": prompt, "text": text, "prompt_ids": own.tolist(), "ids": new})
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(_file(self.folder, number), data.encode())

    def _refuse_broken(self, number: int) -> None:
        """Raises ConfigError where no numbers were behind what is written, and leaves none of it.

        vLLM does not say.
        """
        for one, numbers in zip(self.teachers, self.numbers, strict=True):
            if numbers.all is not None and not numbers.all:
                made = self.plan.batches[number]
                refuse_broken([one], f"sequences {made[0]} to {made[-1]}", self.folder)

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("written")

    def prompts(self, number: int) -> list[torch.Tensor]:
        count = len(self.source)
        rows = [
            self.source[i % count] | {"round": torch.tensor(i // count)}
            for i in self.plan.batches[number]
        ]
        return self.data.prompt_tokens(default_collate(rows), self.plan.prompt_length)

    def generate(self, beginnings: list[torch.Tensor], length: int, number: int) -> list[list[int]]:
        writer = self.writers[number % len(self.writers)]
        found: list[list[int]] = writer(
            beginnings, length, self.plan.sampling, seed_of(self.plan.seed, number)
        )
        return found


def write_all(
    teacher: Teacher,
    source: Dataset[dict[str, Any]],
    plan: Plan,
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
) -> None:
    """What of the plan is not in the folder yet."""
    most = teacher.positions
    if most and plan.length - 1 > most:
        raise ConfigError(
            f"transfer.length={plan.length} is longer than the {most} positions "
            "(max_position_embeddings) of the teacher and the token behind them."
        )
    trainer = make_trainer("the teacher's text")
    trainer.predict(Writer(teacher, source, plan, folder), return_predictions=False)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _file(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.jsonl"


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("text-*.jsonl")):
        with file.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)
