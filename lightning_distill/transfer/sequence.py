"""The teacher writes the transfer set: sequence-level distillation (Kim and Rush 2016)."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import ConcatDataset, Dataset, Subset

from lightning_distill.config.validation import require
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.losses.objective import Objective
from lightning_distill.models.generation import Sampling
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer import vllm
from lightning_distill.transfer.generated import GENERATED, refuse_silent, show
from lightning_distill.transfer.online import Online
from lightning_distill.transfer.sequence_writer import Plan, lines_of, write_all

log = logging.getLogger(__name__)

KIND = "text"  # of artifact
SHOWN = 100  # sequences to read in the run's folder


class Sequence(Online):
    """The student trains on what the teacher makes of the beginnings of the data's blocks.

    With alpha = 0 that text is all that it learns from; else the teacher also labels it.
    num_sequences: to write; None for one a block. prompt_length: tokens of the data that begin a
    sequence, which carry no loss. length: tokens of a sequence at most, with its prompt; None for
    a block and the token behind it. seed: of the teacher's dice. batch_size: sequences at a time.
    mix: share of the student's blocks that are the data's own, from 0 to below 1.
    num_beams: of a search for the likeliest text; 1 for the likeliest token each time.
    Where models answer a whole example (a translation), it is the prompt, prompt_length does not
    count, and length is the answer's alone.
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
        num_beams: int = 1,
    ) -> None:
        super().__init__(num_blocks)
        self.num_sequences, self.prompt_length, self.length = num_sequences, prompt_length, length
        self.sampling = Sampling(temperature, top_p, num_beams)
        self.seed, self.batch_size, self.mix = seed, batch_size, mix
        require("transfer.mix", mix, 0, 1, below=True)

    def check(
        self,
        objective: Objective,
        data: DistillationData,
        teacher_data: DistillationData,
        teachers: int,
    ) -> None:
        """Raises ConfigError where the blocks are too short or too few."""
        refuse_silent(data, "sequence")
        data.check_prompt_length(self.prompt_length)
        if data.continues_prompt and self.length is not None and self.length <= self.prompt_length:
            raise ConfigError(
                f"transfer.length={self.length} counts the prompt's tokens too, and must be more "
                f"than transfer.prompt_length={self.prompt_length}."
            )
        if self.length is not None and not data.continues_prompt and self.length > data.max_length:
            raise ConfigError(
                f"transfer.length={self.length} is longer than "
                f"data.sequence_length={data.max_length}."
            )
        count = self.count(teacher_data.transfer_set())
        if not self.sampling.temperature and (self.num_sequences or 0) > count:
            raise ConfigError(
                f"transfer.temperature=0 has one sequence for each of the {count} prompts; "
                f"transfer.num_sequences={self.num_sequences} asks for more."
            )

    def prepare(
        self,
        data: DistillationData,
        teacher: Teacher,
        store: Store,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> float:
        """Has the transfer set written, unless it is; the seconds that this took now."""
        super().prepare(data, teacher, store, make_trainer, folder)
        examples: Any = teacher.data.transfer_set()
        source = Subset(examples, range(self.count(examples)))
        make = partial(write_all, teacher, source, self._plan(teacher.data), make_trainer)
        artifact = store.get(*self.made_from(data, teacher), make, on_all_ranks=True)
        lines = list(lines_of(artifact.folder))
        new = sum(len(line["ids"]) for line in lines)
        reused = "" if artifact.seconds else " (reused)"
        log.info("text: %s%s; %s sequences, %s tokens", artifact.folder, reused, len(lines), new)
        if process_group.is_rank_zero():
            (folder / GENERATED).unlink(missing_ok=True)
            shown = [{k: line[k] for k in ("prompt", "text")} for line in lines[:SHOWN]]
            show(folder / GENERATED, shown)
        self.written: Any = data.from_generated(lines, teacher.data)
        return artifact.seconds

    def ahead(self, data: DistillationData, teacher_data: DistillationData) -> int:
        return self._plan(teacher_data).num_sequences

    def made_from(self, data: DistillationData, teacher: Teacher) -> tuple[str, dict[str, Any]]:
        theirs = teacher.data
        return KIND, {
            "teacher": teacher.hash,
            "text and tokenizer": theirs.artifact.key,
            **theirs.example_settings,
            **theirs.transfer_set_settings,
            "transfer.num_blocks": self.count(theirs.transfer_set()),
            "written by": "vllm" if vllm.usable(theirs, self.sampling) else "transformers",
            **asdict(self._plan(theirs)),
        }

    def _plan(self, data: DistillationData) -> Plan:
        """data: in the teacher's tokens."""
        return Plan(
            self.num_sequences or self.count(data.transfer_set()),
            self.prompt_length,
            self.length or data.max_length,
            self.sampling,
            self.seed,
            self.batch_size,
        )

    def dataset(self, data: DistillationData) -> Dataset[dict[str, Any]]:
        """The blocks of what was written, and as many of the data's own as `mix` asks for."""
        examples: Any = data.transfer_set()
        own = round(len(self.written) * self.mix / (1 - self.mix))
        count = self.count(examples)
        return ConcatDataset([self.written, Subset(examples, [i % count for i in range(own)])])
