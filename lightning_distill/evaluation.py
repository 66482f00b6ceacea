"""A finished student, and its teacher where there is one, on the held-out test split."""

import logging
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.data import DataModule
from lightning_distill.data.packing import IGNORED
from lightning_distill.losses.ensemble import mean_of
from lightning_distill.metrics import Likeness, Quality
from lightning_distill.models import Frozen, count_parameters
from lightning_distill.teacher import Teacher

log = logging.getLogger(__name__)

POSITIONS = 512  # whose logits are held at a time
PROMPTS = 3
PROMPT_TOKENS = 16
NEW_TOKENS = 48


class Evaluation(L.LightningModule):
    """Runs student, teacher or both over the same batches; `trainer.test` drives it.

    models: of each role, one or several whose probabilities are averaged by `weights`.
    """

    def __init__(
        self,
        models: dict[str, list[Frozen]],
        weights: list[float],
        vocab_size: int,
        bytes_per_token: float,
    ) -> None:
        super().__init__()
        self.models: Any = nn.ModuleDict({k: nn.ModuleList(m) for k, m in models.items()})
        self.quality: Any = nn.ModuleDict({k: Quality(vocab_size, bytes_per_token) for k in models})
        self.likeness = Likeness() if len(models) == 2 else None
        self.weights = weights

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        labels = batch["labels"].flatten()
        said = {role: [model(batch) for model in models] for role, models in self.models.items()}
        # The logits of a few positions at a time: those of a whole batch may not fit.
        for kept in (labels != IGNORED).nonzero()[:, 0].split(POSITIONS):
            found = {}
            for role, predictions in said.items():
                each = [F.log_softmax(one.at(kept).logits(), dim=-1) for one in predictions]
                found[role] = mean_of(each, self.weights)
                self.quality[role].update(found[role], labels[kept])
            if self.likeness:
                self.likeness.update(found["student"], found["teacher"])

    def compute(self) -> dict[str, dict[str, Any]]:
        found = {name: quality.compute() for name, quality in self.quality.items()}
        if self.likeness:
            found["student"] |= self.likeness.compute()
        return found


def evaluate(
    trainer: L.Trainer,
    data: DataModule,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
) -> dict[str, dict[str, Any] | None]:
    """The numbers of `results.json` for `teacher` and `student`; None for what is not there.

    nll in nats per token of the test split, each in its own tokens. Only where they share them
    can the student be said to be like its teacher.
    """
    found: dict[str, dict[str, Any] | None] = {"teacher": None, "student": None}
    runs: list[tuple[DataModule, dict[str, list[Frozen]]]] = []
    if student is not None:
        runs.append((data, {"student": [Frozen(student, len(data.tokenizer))]}))
    if teacher is not None:
        if not runs or teacher.data is not data:
            runs.append((teacher.data, {}))
        runs[-1][1]["teacher"] = teacher.frozen()
    for text, models in runs:
        weights = teacher.weights if teacher else [1.0]
        evaluation = Evaluation(models, weights, len(text.tokenizer), text.bytes_per_token("test"))
        trainer.test(evaluation, text, verbose=False)
        for role, scores in evaluation.compute().items():
            size = sum(count_parameters(one.model) for one in models[role])
            found[role] = {"parameters": size, **scores}
    return found


@torch.no_grad()
def write_samples(
    data: DataModule, student: PreTrainedModel, teacher: Teacher | None, seed: int
) -> list[dict[str, str]]:
    """How student and teacher go on from the same beginnings of test blocks, sampled at T = 1.

    Of several teachers, the first one writes.
    """
    blocks = data.blocks("test")
    writers = [("student", student, data.tokenizer)]
    if teacher is not None:
        writers.append(("teacher", teacher.models[0], teacher.data.tokenizer))
    samples = []
    width = min(PROMPT_TOKENS, blocks.sequence_length)
    for index in range(min(PROMPTS, len(blocks))):
        ids = blocks[index * len(blocks) // PROMPTS]["input_ids"][:width]
        sample = {"prompt": str(data.tokenizer.decode(ids))}
        for role, model, tokenizer in writers:
            if tokenizer is not data.tokenizer:
                own = tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
                ids = torch.tensor(own)
            torch.manual_seed(seed)
            prompt = ids[None].to(model.device)
            written = model.eval().generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                pad_token_id=tokenizer.eos_token_id,
            )
            new = written[0, prompt.shape[1] :]
            sample[role] = str(tokenizer.decode(new, skip_special_tokens=True))
        samples.append(sample)
    return samples
