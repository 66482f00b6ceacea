"""The student learns from its own mistakes: on-policy distillation (Agarwal et al. 2024)."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_distill.config.validation import require
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError
from lightning_distill.losses.objective import Objective
from lightning_distill.models.generation import Sampling, generate, seed_of
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.generated import GENERATED, refuse_silent, show
from lightning_distill.transfer.online import Online


class OnPolicy(Online):
    """Some batches are completed by the student itself, and the teacher grades what it wrote.

    Of those batches only the new tokens count, and only the teacher's terms of the objective: what
    the student says is no truth to learn from (generalized knowledge distillation, Agarwal et al.
    2024, algorithm 1). No gradient passes through the choice of tokens.
    student_fraction: the probability that a step's batches are the student's, from 0 to 1.
    prompt_length: tokens of each block that it is given.
    temperature: of the student that writes; 0 for its likeliest token.
    """

    def __init__(
        self,
        num_blocks: int | None,
        student_fraction: float,
        prompt_length: int,
        temperature: float,
    ) -> None:
        super().__init__(num_blocks)
        require("transfer.student_fraction", student_fraction, 0, 1)
        self.student_fraction, self.prompt_length = student_fraction, prompt_length
        self.sampling = Sampling(temperature)
        self.data: DistillationData | None = None

    def check(
        self,
        objective: Objective,
        data: DistillationData,
        teacher_data: DistillationData,
        teachers: int,
    ) -> None:
        """Raises ConfigError where there is nobody to grade, or no room to generate."""
        refuse_silent(data, "on_policy")
        data.check_prompt_length(self.prompt_length)
        if objective.intermediate and not objective.compares_predictions:
            raise ConfigError(
                "transfer.student_fraction: no term of the loss grades what the student writes. "
                "Set loss.alpha above 0, or transfer=online."
            )

    def prepare(
        self,
        data: DistillationData,
        teacher: Teacher,
        store: Store,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> float:
        self.data, self.file = data, folder / GENERATED
        return super().prepare(data, teacher, store, make_trainer, folder)

    def compose(self, module: TrainedModule, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as it is, or with the student's own words behind the prompts.

        All devices and micro-batches of a step decide alike.
        """
        if self.data is None:  # without a teacher nobody could grade it
            return batch
        step, seed = module.global_step, self.data.seed
        mine = random.Random(seed_of(seed, step)).random() < self.student_fraction
        if module.logs_now:
            module.log("train/by_student", float(mine))
        if not mine:
            return batch
        asked = batch | {"round": torch.full_like(batch["block"], step)}
        beginnings = self.data.prompt_tokens(asked, self.prompt_length)
        dice = seed_of(seed, step, *batch["block"].tolist())
        tokenizer = self.data.tokenizer
        new = generate(
            module.model,
            tokenizer,
            beginnings,
            self.data.max_length,
            self.sampling,
            dice,
            self.data.stop_token_ids,
        )
        if module.logs_now and module.global_rank == 0:
            prompt, text = tokenizer.decode(beginnings[0]), tokenizer.decode(new[0])
            show(self.file, [{"step": step, "prompt": prompt, "text": text}])
        own = self.data.completion_batch(beginnings, new)
        places = {name: x.to(batch["labels"].device) for name, x in own.items()}
        return batch | places | {"by_student": True, "kept": None}
