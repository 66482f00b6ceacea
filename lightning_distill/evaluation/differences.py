"""The test tokens on which student and teacher differ most, for the report."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lightning_distill.constants import IGNORED
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.models.frozen import Frozen
from lightning_distill.training.teacher import Teacher

EXAMPLES = 4  # of the test split that are read
TOKENS = 256  # of each, at most
PASSAGES = 2  # that are kept whole
LARGEST = 12  # differences that are kept
CONTEXT = 16  # tokens before each of them
FAVORITES = 3  # most probable tokens of each model


def token_differences(
    data: DistillationData, student: PreTrainedModel, teacher: Teacher
) -> dict[str, Any]:
    """KL(p ‖ q) of each predicted token of a few test examples; of an ensemble, its first model.

    passages: the tokens of the first examples as text, and the KL of each in nats.
    largest: the positions with the largest KL, the largest first: the text before, the token that
    follows, and of student and teacher the most probable tokens with their probabilities.
    Empty where the two have different tokens, or predict something else than a text.
    """
    if not data.is_generative or teacher.data is not data:
        return {}
    examples = data.held_out("test")
    models = [Frozen(one, data.num_classes) for one in (student, teacher.models[0])]
    passages, positions = [], []
    for index in range(min(EXAMPLES, len(examples))):
        batch = data.collate([examples[index]])
        tensors = {name: x.to(student.device) for name, x in batch.items() if isinstance(x, Tensor)}
        kept = (tensors["labels"].flatten() != IGNORED).nonzero()[:TOKENS, 0]
        if not len(kept):
            continue
        labels = tensors["labels"].flatten()[kept]
        log_probs = [F.log_softmax(model(tensors).at(kept).logits(), dim=-1) for model in models]
        divergences = forward_kl(*log_probs)
        tokens = [str(data.tokenizer.decode([label])) for label in labels.tolist()]
        passages.append({"tokens": tokens, "kl": [round(x, 4) for x in divergences.tolist()]})
        for at in divergences.topk(min(LARGEST, len(kept))).indices.tolist():
            before = data.tokenizer.decode(labels[max(0, at - CONTEXT) : at].tolist())
            favorites = [_favorites(data, one[at]) for one in log_probs]
            positions.append(
                {
                    "before": str(before),
                    "token": tokens[at],
                    "kl": float(divergences[at]),
                    **dict(zip(("student", "teacher"), favorites, strict=True)),
                }
            )
    largest = sorted(positions, key=lambda one: -one["kl"])[:LARGEST]
    return {"passages": passages[:PASSAGES], "largest": largest}


def _favorites(data: DistillationData, log_probs: Tensor) -> list[tuple[str, float]]:
    """The most probable tokens with their probabilities. log_probs: [V]."""
    top = log_probs.topk(min(FAVORITES, len(log_probs)))
    tokens = [str(data.tokenizer.decode([token])) for token in top.indices.tolist()]
    return [(t, round(p, 4)) for t, p in zip(tokens, torch.exp(top.values).tolist(), strict=True)]
