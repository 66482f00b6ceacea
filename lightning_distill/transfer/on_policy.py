"""The student learns from its own mistakes: on-policy distillation (Agarwal et al. 2024)."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_distill import ConfigError
from lightning_distill.artifacts import Store
from lightning_distill.data import DataModule
from lightning_distill.data.packing import IGNORED
from lightning_distill.losses import Objective
from lightning_distill.settings import require
from lightning_distill.teacher import Teacher
from lightning_distill.training import LanguageModule
from lightning_distill.transfer.online import Online
from lightning_distill.transfer.writing import (
    GENERATED,
    Sampling,
    prompts,
    refuse_longer,
    seed_of,
    show,
    write,
)


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
        self.data: DataModule | None = None

    def check(
        self, objective: Objective, data: DataModule, teacher_data: DataModule, teachers: int
    ) -> None:
        """Raises ConfigError where there is nobody to grade, or no room to write."""
        refuse_longer(self.prompt_length, data)
        if objective.inside and not objective.compares_predictions:
            raise ConfigError(
                "transfer.student_fraction: no term of the loss grades what the student writes. "
                "Set loss.alpha above 0, or transfer=online."
            )

    def prepare(
        self,
        data: DataModule,
        teacher: Teacher,
        store: Store,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> float:
        self.data, self.file = data, folder / GENERATED
        return super().prepare(data, teacher, store, make_trainer, folder)

    def compose(self, module: LanguageModule, batch: dict[str, Any]) -> dict[str, Any]:
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
        length = batch["input_ids"].shape[1] + 1
        beginnings = prompts(batch, self.prompt_length)
        dice = seed_of(seed, step, *batch["block"].tolist())
        tokenizer = self.data.tokenizer
        new = write(module.model, tokenizer, beginnings, length, self.sampling, dice)
        if module.logs_now and module.global_rank == 0:
            prompt, text = tokenizer.decode(beginnings[0]), tokenizer.decode(new[0])
            show(self.file, [{"step": step, "prompt": prompt, "text": text}])
        return batch | _as_batch(beginnings, new, length, batch["input_ids"].device)


def _as_batch(
    beginnings: list[Tensor], new: list[list[int]], length: int, device: torch.device
) -> dict[str, Any]:
    """input_ids, labels and position_ids [B, length - 1]; prompts and filling carry no loss."""
    ids = torch.zeros(len(new), length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for b, (own, said) in enumerate(zip(beginnings, new, strict=True)):
        whole = torch.cat([own, torch.tensor(said)])
        ids[b, : len(whole)] = whole
        labels[b, len(own) : len(whole)] = whole[len(own) :]
    places = torch.arange(length - 1).expand(len(new), -1)
    found = {"input_ids": ids[:, :-1], "labels": labels[:, 1:], "position_ids": places}
    return {name: x.to(device) for name, x in found.items()} | {"by_student": True}
