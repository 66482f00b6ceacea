"""Sequence-level distillation: the student trains on text that the teacher generates."""

import logging
import math
from dataclasses import asdict
from functools import partial
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from lightning_distill.config.validation import require
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.losses.objective import Objective
from lightning_distill.models.generation import Sampling
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import Artifact
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer import vllm
from lightning_distill.transfer.base import Transfer, Workspace
from lightning_distill.transfer.generated import GENERATED, append_lines, require_generative
from lightning_distill.transfer.sequence_writer import WritingPlan, read_sequences, write_sequences

log = logging.getLogger(__name__)

SHOWN = 100  # sequences that the run's folder gets to read
DRY_RUN_SEQUENCES = 8


class Sequence(Transfer):
    """The student trains on the teacher's completions of prompts from the data.

    Kim and Rush 2016, Sequence-Level Knowledge Distillation. With alpha = 0 the student learns from
    that text alone; otherwise the teacher also labels it.
    num_sequences: None for one a block. prompt_length: tokens of the data that begin a sequence and
        carry no loss. length: maximum tokens of a sequence, prompt included; None for those of a
        block and its last target.
    temperature, top_p, num_beams: of the teacher's sampling, see `Sampling`; seed: of its RNG.
    batch_size: sequences generated at a time.
    mix: share of the student's blocks that come from the data itself, from 0 to below 1.
    Where models answer a whole example (translation), the example is the prompt, prompt_length has
    no effect, and length counts the answer alone.
    """

    prepares = "text"
    unit_count_key = "num_sequences"
    supervises_by_text = True

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
        require("transfer.temperature", temperature, 0)
        require("transfer.top_p", top_p, 1e-6, 1)
        require("transfer.mix", mix, 0, 1, below=True)
        if num_beams > 1 and temperature:
            raise ConfigError(
                f"transfer.num_beams={num_beams} searches for the most probable text, and "
                f"transfer.temperature={temperature:g} samples one; set transfer.temperature=0."
            )
        self.num_sequences, self.prompt_length, self.length = num_sequences, prompt_length, length
        self.sampling = Sampling(temperature, top_p, num_beams)
        self.seed, self.batch_size, self.mix = seed, batch_size, mix

    def check(
        self, objective: Objective, data: DistillationData, teacher_data: DistillationData
    ) -> None:
        """Raises ConfigError where blocks or prompts are too short or too few."""
        require_generative(data, "sequence")
        data.check_prompt_length(self.prompt_length)
        if data.continues_prompt and self.length is not None and self.length <= self.prompt_length:
            raise ConfigError(
                f"transfer.length={self.length} includes the prompt's tokens, and must be more "
                f"than transfer.prompt_length={self.prompt_length}."
            )
        if self.length is not None and not data.continues_prompt and self.length > data.max_length:
            raise ConfigError(
                f"transfer.length={self.length} is longer than "
                f"data.sequence_length={data.max_length}."
            )
        count = self.num_examples(teacher_data.transfer_set())
        if not self.sampling.temperature and (self.num_sequences or 0) > count:
            raise ConfigError(
                f"transfer.temperature=0 has one sequence for each of the {count} prompts; "
                f"transfer.num_sequences={self.num_sequences} asks for more."
            )

    def dry_run_settings(self, batch_size: int, api_teacher: bool) -> dict[str, Any]:
        count = max(self.batch_size, DRY_RUN_SEQUENCES)
        return {"num_sequences": min(self.num_sequences or count, count)}

    def units_to_prepare(self, data: DistillationData, teacher_data: DistillationData) -> int:
        return self._plan(teacher_data).num_sequences

    def expected_examples(self, data: DistillationData, teacher_data: DistillationData) -> int:
        plan = self._plan(teacher_data)
        generated = plan.num_sequences
        if data.continues_prompt:  # sequences are cut into blocks
            generated = math.ceil(generated * plan.length / (data.max_length - 1))
        return round(generated / (1 - self.mix))

    def made_from(self, data: DistillationData, teacher: Teacher) -> dict[str, Any]:
        teacher_data = teacher.data
        by_vllm = vllm.is_usable(teacher_data, self.sampling)
        return {
            "teacher": teacher.hash,
            "text and tokenizer": teacher_data.artifact.key,
            **teacher_data.example_settings,
            **teacher_data.transfer_set_settings,
            "transfer.num_blocks": self.num_examples(teacher_data.transfer_set()),
            "written by": "vllm" if by_vllm else "transformers",
            **asdict(self._plan(teacher_data)),
        }

    def prepare(self, data: DistillationData, teacher: Teacher, workspace: Workspace) -> float:
        super().prepare(data, teacher, workspace)
        artifact = self._obtain(data, teacher, workspace)
        sequences = list(read_sequences(artifact.folder))
        log.info(
            "text: %s%s; %s sequences, %s tokens",
            shown(artifact.folder),
            "" if artifact.seconds else " (reused)",
            len(sequences),
            sum(len(one["ids"]) for one in sequences),
        )
        if process_group.is_rank_zero():
            (workspace.folder / GENERATED).unlink(missing_ok=True)
            examples = [{k: one[k] for k in ("prompt", "text")} for one in sequences[:SHOWN]]
            append_lines(workspace.folder / GENERATED, examples)
        self.generated: Any = data.from_generated(sequences, teacher.data)
        return artifact.seconds

    def _obtain(self, data: DistillationData, teacher: Teacher, workspace: Workspace) -> Artifact:
        examples: Any = teacher.data.transfer_set()
        source = Subset(examples, range(self.num_examples(examples)))
        plan = self._plan(teacher.data)
        make = partial(write_sequences, teacher, source, plan, workspace.make_trainer)
        made_from = self.made_from(data, teacher)
        return workspace.store.get(self.prepares, made_from, make, on_all_ranks=True)

    def _plan(self, teacher_data: DistillationData) -> WritingPlan:
        return WritingPlan(
            self.num_sequences or self.num_examples(teacher_data.transfer_set()),
            self.prompt_length,
            self.length or teacher_data.max_length,
            self.sampling,
            self.seed,
            self.batch_size,
        )

    def dataset(self, data: DistillationData) -> Dataset[dict[str, Any]]:
        """The generated blocks, and as many of the data's as `mix` asks for."""
        examples: Any = data.transfer_set()
        own = round(len(self.generated) * self.mix / (1 - self.mix))
        count = self.num_examples(examples)
        return ConcatDataset([self.generated, Subset(examples, [i % count for i in range(own)])])
