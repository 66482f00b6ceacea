"""The teacher generates the sequences of a transfer set into files, one a batch."""

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
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.generation import NonFiniteLogits, Sampling, generate, seed_of
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer import vllm
from lightning_distill.transfer.cache.writer import predict, refuse_nonfinite

log = logging.getLogger(__name__)

TRIAL_TOKENS = 8  # generated first, to estimate the remaining time

# (prompts [P], length, sampling, seed) to the new tokens of each.
Generate = Callable[[list[Tensor], int, Sampling, int], list[list[int]]]


@dataclass(frozen=True)
class WritingPlan:
    """What is generated. With the teacher and the prompts it determines the artifact."""

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


class SequenceWriter(L.LightningModule):
    """Writes the files that are missing, one a batch; `trainer.predict` drives it.

    A file's content depends on its number alone, not on the device that writes it. With several
    teachers, they take turns batch by batch.
    """

    def __init__(
        self, teacher: Teacher, source: Dataset[dict[str, Any]], plan: WritingPlan, folder: Path
    ) -> None:
        super().__init__()
        # A device may have no file to write.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.data, self.tokenizer = teacher.data, teacher.data.tokenizer
        self.source: Any = source
        self.plan, self.folder = plan, folder
        self.teachers: Any = nn.ModuleList()
        self.watches: list[NonFiniteLogits] = []
        self.generators: list[Generate] = []
        quantized = any(map(pretrained.is_quantized, teacher.models))
        if vllm.is_usable(self.data, plan.sampling) and not quantized:
            self._use_vllm(teacher)
        else:
            self._use_transformers(teacher)

    def _use_vllm(self, teacher: Teacher) -> None:
        self.temporary = TemporaryDirectory()  # removed with this object
        for number, model in enumerate(teacher.models):
            folder = Path(self.temporary.name) / str(number)
            engine = vllm.VLLM(
                model, self.tokenizer, self.plan.length, folder, self.data.stop_token_ids
            )
            self.generators.append(engine)
        teacher.release()

    def _use_transformers(self, teacher: Teacher) -> None:
        self.teachers.extend(teacher.frozen())
        for frozen in self.teachers:
            watch = NonFiniteLogits()
            self.watches.append(watch)
            self.generators.append(
                partial(
                    generate,
                    frozen.model,
                    self.tokenizer,
                    stops=self.data.stop_token_ids,
                    watch=watch,
                )
            )

    def configure_model(self) -> None:
        """Teachers are never sharded: devices generate different numbers of tokens."""

    def predict_dataloader(self) -> DataLoader:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        numbers = range(rank, len(self.plan.batches), world_size)
        self.missing = [n for n in numbers if not _file(self.folder, n).exists()]
        return DataLoader(self.missing, batch_size=None)  # type: ignore[arg-type]

    def on_predict_start(self) -> None:
        """Generates a few tokens to log an estimate of the time."""
        if not self.missing:
            return
        prompts = self.prompts(self.missing[0])
        prompt_length = max(map(len, prompts)) if self.data.continues_prompt else 0
        length = min(prompt_length + TRIAL_TOKENS, self.plan.length)
        start = time.perf_counter()
        self.generate(prompts, length, 0)
        per_token = (time.perf_counter() - start) / TRIAL_TOKENS
        per_batch = per_token * (self.plan.length - length + TRIAL_TOKENS)
        log.info(
            "the teacher generates %s sequences of up to %s tokens: about %.0f seconds",
            f"{sum(len(self.plan.batches[n]) for n in self.missing) * self.trainer.world_size:,}",
            self.plan.length,
            per_batch * len(self.missing),
        )

    def predict_step(self, number: int, _: int) -> None:
        prompts = self.prompts(number)
        generated = self.generate(prompts, self.plan.length, number)
        self._check_finite(number)
        sequences = [
            {
                "prompt": self.tokenizer.decode(prompt),
                "text": self.tokenizer.decode(new, True),
                "prompt_ids": prompt.tolist(),
                "ids": new,
            }
            for prompt, new in zip(prompts, generated, strict=True)
        ]
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sequences)
        write_atomic(_file(self.folder, number), lines.encode())

    def _check_finite(self, number: int) -> None:
        """Raises ConfigError where a teacher's logits were NaN or Inf; vLLM does not report it."""
        for teacher, watch in zip(self.teachers, self.watches, strict=True):
            if watch.seen:
                sequences = self.plan.batches[number]
                where = f"sequences {sequences[0]} to {sequences[-1]}"
                refuse_nonfinite([teacher], where, self.folder)

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("written")

    def prompts(self, number: int) -> list[Tensor]:
        """The prompts of a batch, [P] token ids each."""
        count = len(self.source)
        examples = [
            self.source[i % count] | {"round": torch.tensor(i // count)}
            for i in self.plan.batches[number]
        ]
        return self.data.prompt_tokens(default_collate(examples), self.plan.prompt_length)

    def generate(self, prompts: list[Tensor], length: int, number: int) -> list[list[int]]:
        """The teacher's completions in the batch of that number."""
        generate_batch = self.generators[number % len(self.generators)]
        return generate_batch(prompts, length, self.plan.sampling, seed_of(self.plan.seed, number))


def write_sequences(
    teacher: Teacher,
    source: Dataset[dict[str, Any]],
    plan: WritingPlan,
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
) -> None:
    """Writes the sequences that the folder lacks. source: the examples that prompts come from."""
    positions = teacher.max_positions
    if positions and plan.length - 1 > positions:
        raise ConfigError(
            f"transfer.length={plan.length} is longer than the {positions} positions "
            "(max_position_embeddings) of the teacher and one token more. Set it lower."
        )
    predict(SequenceWriter(teacher, source, plan, folder), make_trainer("the teacher's text"))


def _file(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.jsonl"


def read_sequences(folder: Path) -> Iterator[dict[str, Any]]:
    """prompt, text, prompt_ids and ids of each sequence."""
    for file in sorted(folder.glob("text-*.jsonl")):
        with file.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)
