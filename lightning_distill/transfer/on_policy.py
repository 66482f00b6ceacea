"""On-policy distillation: the teacher labels what the student generates."""

import random
from typing import Any

import torch

from lightning_distill.config.validation import require
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError
from lightning_distill.losses.objective import Objective
from lightning_distill.models.generation import Sampling, generate, seed_of
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.base import Transfer, Workspace
from lightning_distill.transfer.generated import GENERATED, append_lines, require_generative


class OnPolicy(Transfer):
    """The student completes some of the batches, and learns from the teacher's predictions there.

    In those batches the loss covers the generated tokens alone, and only the objective's terms that
    compare with the teacher: generated tokens are no ground truth. No gradient passes through the
    sampling. Agarwal et al. 2024, Generalized Knowledge Distillation, algorithm 1.
    student_fraction: the probability, from 0 to 1, that the student completes a step's batches.
    prompt_length: tokens of each block that the student is given.
    temperature: of the student's sampling; 0 for greedy decoding.
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
        require("transfer.temperature", temperature, 0)
        self.student_fraction, self.prompt_length = student_fraction, prompt_length
        self.sampling = Sampling(temperature)
        self.data: DistillationData | None = None  # set by `prepare`, where there is a teacher

    def check(
        self, objective: Objective, data: DistillationData, teacher_data: DistillationData
    ) -> None:
        require_generative(data, "on_policy")
        data.check_prompt_length(self.prompt_length)
        if objective.intermediate and not objective.compares_predictions:
            raise ConfigError(
                "transfer=on_policy needs a loss that compares the teacher's predictions with the "
                "student's. Set loss.alpha above 0, or transfer=online."
            )

    def prepare(self, data: DistillationData, teacher: Teacher, workspace: Workspace) -> float:
        self.data, self.file = data, workspace.folder / GENERATED
        return super().prepare(data, teacher, workspace)

    def transform_batch(self, module: TrainedModule, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch itself, or its prompts with the student's completions.

        All devices and micro-batches of a step choose alike.
        """
        if self.data is None:  # no teacher, so nothing to compare completions with
            return batch
        step, seed = module.global_step, self.data.seed
        by_student = random.Random(seed_of(seed, step)).random() < self.student_fraction
        if module.logs_now:
            module.log("train/by_student", float(by_student))
        if not by_student:
            return batch
        rounds = torch.full_like(batch["block"], step)
        prompts = self.data.prompt_tokens(batch | {"round": rounds}, self.prompt_length)
        tokenizer = self.data.tokenizer
        completions = generate(
            module.model,
            tokenizer,
            prompts,
            self.data.max_length,
            self.sampling,
            seed_of(seed, step, *batch["block"].tolist()),
            self.data.stop_token_ids,
        )
        if module.logs_now and module.global_rank == 0:
            prompt, text = tokenizer.decode(prompts[0]), tokenizer.decode(completions[0])
            append_lines(self.file, [{"step": step, "prompt": prompt, "text": text}])
        completed = self.data.completion_batch(prompts, completions)
        tensors = {name: x.to(batch["labels"].device) for name, x in completed.items()}
        return batch | tensors | {"by_student": True, "kept": None}
