"""The teacher writes the transfer set: sequence-level distillation (Kim and Rush 2016)."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate
from transformers import PreTrainedTokenizerBase

from lightning_distill import ConfigError
from lightning_distill.artifacts import Store, write_whole
from lightning_distill.data import DataModule
from lightning_distill.data.packing import Blocks
from lightning_distill.losses import Objective
from lightning_distill.settings import require
from lightning_distill.teacher import Teacher
from lightning_distill.transfer import vllm
from lightning_distill.transfer.online import Online
from lightning_distill.transfer.writing import GENERATED, Sampling, prompts, seed_of, show, write

log = logging.getLogger(__name__)

SHOWN = 100  # sequences to read in the run's folder
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


class Sequence(Online):
    """The student trains on what the teacher makes of the beginnings of the data's blocks.

    With alpha = 0 that text is all that it learns from; else the teacher also labels it.
    num_sequences: to write; None for one a block. prompt_length: tokens of the data that begin a
    sequence, which carry no loss. length: tokens of a sequence at most, with its prompt; None for
    a block and the token behind it. seed: of the teacher's dice. batch_size: sequences at a time.
    mix: share of the student's blocks that are the data's own, from 0 to below 1.
    """

    always_asks = True

    def __init__(
        self,
        num_blocks: int | None,
        num_sequences: int | None,
        prompt_length: int,
        length: int | None,
        temperature: float,
        top_p: float,
        seed: int,
        batch_size: int,
        mix: float,
    ) -> None:
        super().__init__(num_blocks)
        self.num_sequences, self.prompt_length, self.length = num_sequences, prompt_length, length
        self.sampling = Sampling(temperature, top_p)
        self.seed, self.batch_size, self.mix = seed, batch_size, mix
        require("transfer.mix", mix, 0, 1, below=True)
        if length is not None and length <= prompt_length:
            raise ConfigError(
                f"transfer.length={length} counts the prompt's tokens too, and must be more than "
                f"transfer.prompt_length={prompt_length}."
            )

    def check(
        self, objective: Objective, data: DataModule, teacher_data: DataModule, teachers: int
    ) -> None:
        """Raises ConfigError where the blocks are too short or too few."""
        refuse_longer(self.prompt_length, data)
        count = self.count(teacher_data.blocks("train"))
        if not self.sampling.temperature and (self.num_sequences or 0) > count:
            raise ConfigError(
                f"transfer.temperature=0 has one sequence for each of the {count} prompts; "
                f"transfer.num_sequences={self.num_sequences} asks for more."
            )

    def prepare(
        self,
        data: DataModule,
        teacher: Teacher,
        store: Store,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> float:
        """Has the transfer set written, unless it is; the seconds that this took now."""
        super().prepare(data, teacher, store, make_trainer, folder)
        blocks = teacher.data.blocks("train")
        source = Subset(blocks, range(self.count(blocks)))
        plan = Plan(
            self.num_sequences or len(source),
            self.prompt_length,
            self.length or blocks.sequence_length + 1,
            self.sampling,
            self.seed,
            self.batch_size,
        )
        made_from = {
            "teacher": teacher.hash,
            "text and tokenizer": teacher.data.artifact.key,
            "data.sequence_length": blocks.sequence_length,
            "data.isolate_documents": blocks.isolate_documents,
            "transfer.num_blocks": len(source),
            "written by": "vllm" if vllm.usable() else "transformers",
            **asdict(plan),
        }
        make = partial(_make, teacher, source, plan, make_trainer)
        artifact = store.get("text", made_from, make)
        lines = list(_lines(artifact.folder))
        new = sum(len(line["ids"]) for line in lines)
        reused = "" if artifact.seconds else " (reused)"
        log.info("text: %s%s; %s sequences, %s tokens", artifact.folder, reused, len(lines), new)
        (folder / GENERATED).unlink(missing_ok=True)
        show(
            folder / GENERATED, [{k: line[k] for k in ("prompt", "text")} for line in lines[:SHOWN]]
        )
        self.written = _packed(lines, data, teacher.data)
        return artifact.seconds

    def dataset(self, data: DataModule) -> Dataset[dict[str, Any]]:
        """The blocks of what was written, and as many of the data's own as `mix` asks for."""
        blocks = data.blocks("train")
        own = round(len(self.written) * self.mix / (1 - self.mix))
        count = self.count(blocks)
        return ConcatDataset([self.written, Subset(blocks, [i % count for i in range(own)])])


def refuse_longer(prompt_length: int, data: DataModule) -> None:
    """Raises ConfigError unless a block has room for a prompt and more."""
    if prompt_length >= data.sequence_length:
        raise ConfigError(
            f"transfer.prompt_length={prompt_length} must be less than "
            f"data.sequence_length={data.sequence_length}."
        )


class Writer(L.LightningModule):
    """Writes the files that are not there yet, one a batch; `trainer.predict` drives it.

    Each device writes files of its own, the same ones whoever wrote the others. Of several
    teachers, each writes every so many-th batch.
    """

    def __init__(
        self, teacher: Teacher, source: Dataset[dict[str, Any]], plan: Plan, folder: Path
    ) -> None:
        super().__init__()
        self.teachers: Any = nn.ModuleList()
        self.tokenizer: PreTrainedTokenizerBase = teacher.data.tokenizer
        self.source: Any = source
        self.plan, self.folder = plan, folder
        if vllm.usable():
            self.scratch = TemporaryDirectory()  # gone with this object
            places = [Path(self.scratch.name) / str(i) for i in range(len(teacher.load))]
            self.writers: list[Any] = [
                vllm.VLLM(model, self.tokenizer, plan.length, place)
                for model, place in zip(teacher.models, places, strict=True)
            ]
            teacher.release()
        else:
            self.teachers.extend(teacher.frozen())
            self.writers = [partial(write, one.model, self.tokenizer) for one in self.teachers]

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
        length = max(map(len, beginnings)) + TRIAL
        start = time.perf_counter()
        self.write(beginnings, length, 0)
        seconds = (time.perf_counter() - start) / TRIAL * (self.plan.length - length + TRIAL)
        log.info(
            "the teacher writes %s sequences of up to %s tokens: about %.0f seconds",
            f"{sum(len(self.plan.batches[n]) for n in self.missing) * self.trainer.world_size:,}",
            self.plan.length,
            seconds * len(self.missing),
        )

    def predict_step(self, number: int, _: int) -> None:
        beginnings = self.prompts(number)
        found = self.write(beginnings, self.plan.length, number)
        lines = []
        for own, new in zip(beginnings, found, strict=True):
            prompt, text = self.tokenizer.decode(own), self.tokenizer.decode(new, True)
            lines.append({"prompt": prompt, "text": text, "prompt_ids": own.tolist(), "ids": new})
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(_file(self.folder, number), data.encode())

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("written")

    def prompts(self, number: int) -> list[torch.Tensor]:
        count = len(self.source)
        rows = [self.source[i % count] for i in self.plan.batches[number]]
        return prompts(default_collate(rows), self.plan.prompt_length)

    def write(self, beginnings: list[torch.Tensor], length: int, number: int) -> list[list[int]]:
        writer = self.writers[number % len(self.writers)]
        found: list[list[int]] = writer(
            beginnings, length, self.plan.sampling, seed_of(self.plan.seed, number)
        )
        return found


def _make(
    teacher: Teacher,
    source: Dataset[dict[str, Any]],
    plan: Plan,
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
) -> None:
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


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("text-*.jsonl")):
        with file.open() as stream:
            yield from map(json.loads, stream)


def _packed(lines: list[dict[str, Any]], data: DataModule, theirs: DataModule) -> Blocks:
    """All sequences one after the other; what the prompts say is not there to be learned."""
    tokens: list[int] = []
    documents: list[int] = []
    targets: list[bool] = []
    for number, line in enumerate(lines):
        begin, new = line["prompt_ids"], line["ids"]
        if theirs is not data:  # the student reads it in its own tokens
            ended = new[-1:] == [theirs.tokenizer.eos_token_id]
            begin, new = (
                data.tokenizer(line[part], add_special_tokens=False, verbose=False)["input_ids"]
                for part in ("prompt", "text")
            )
            new = [*new, data.tokenizer.eos_token_id] if ended else new
        tokens += [*begin, *new]
        documents += [number] * (len(begin) + len(new))
        targets += [False] * len(begin) + [True] * len(new)
    if len(tokens) <= data.sequence_length:
        raise ConfigError(
            f"The teacher has written {len(tokens)} tokens, fewer than one block of "
            f"data.sequence_length={data.sequence_length}. Set more transfer.num_sequences."
        )
    return Blocks(
        torch.tensor(tokens, dtype=torch.int32),
        torch.tensor(documents, dtype=torch.int32),
        data.sequence_length,
        data.isolate_documents,
        torch.tensor(targets),
    )
