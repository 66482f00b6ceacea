"""A finished student, and its teacher where there is one, on the held-out test split."""

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.data import DataModule
from lightning_distill.metrics import Likeness, Quality, kept_log_probs
from lightning_distill.models import Frozen, count_parameters

log = logging.getLogger(__name__)

PROMPTS = 3
PROMPT_TOKENS = 16
NEW_TOKENS = 48


class Evaluation(L.LightningModule):
    """Runs one or two models over the same batches; `trainer.test` drives it."""

    def __init__(
        self, models: dict[str, PreTrainedModel], vocab_size: int, bytes_per_token: float
    ) -> None:
        super().__init__()
        self.models: Any = nn.ModuleDict({k: Frozen(m) for k, m in models.items()})
        self.quality: Any = nn.ModuleDict({k: Quality(vocab_size, bytes_per_token) for k in models})
        self.likeness = Likeness() if len(models) == 2 else None
        self.vocab_size = vocab_size

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        found = {}
        for name, model in self.models.items():
            logits = model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits
            found[name], labels = kept_log_probs(logits, batch["labels"], self.vocab_size)
            self.quality[name].update(found[name], labels)
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
    teacher: PreTrainedModel | None,
) -> dict[str, dict[str, Any] | None]:
    """The numbers of `results.json` for `teacher` and `student`; None for what is not there.

    nll in nats per token of the test split.
    """
    models = {k: m for k, m in (("teacher", teacher), ("student", student)) if m is not None}
    evaluation = Evaluation(models, len(data.tokenizer), data.bytes_per_token("test"))
    trainer.test(evaluation, data, verbose=False)
    found = evaluation.compute()
    return {
        role: {"parameters": count_parameters(models[role]), **found[role]}
        if role in models
        else None
        for role in ("teacher", "student")
    }


@torch.no_grad()
def write_samples(
    data: DataModule, student: PreTrainedModel, teacher: PreTrainedModel | None, seed: int
) -> list[dict[str, str]]:
    """How student and teacher go on from the same beginnings of test blocks, sampled at T = 1."""
    blocks = data.blocks("test")
    tokenizer = data.tokenizer
    samples = []
    width = min(PROMPT_TOKENS, blocks.sequence_length)
    for index in range(min(PROMPTS, len(blocks))):
        prompt = blocks[index * len(blocks) // PROMPTS]["input_ids"][None, :width]
        sample = {"prompt": str(tokenizer.decode(prompt[0]))}
        for role, model in (("student", student), ("teacher", teacher)):
            if model is None:
                continue
            torch.manual_seed(seed)
            ids = model.eval().generate(
                prompt.to(model.device),
                attention_mask=torch.ones_like(prompt).to(model.device),
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                pad_token_id=tokenizer.eos_token_id,
            )
            sample[role] = str(tokenizer.decode(ids[0, width:], skip_special_tokens=True))
        samples.append(sample)
    return samples
