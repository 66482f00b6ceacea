"""How long it takes to generate a run's answers and samples, from a few of their tokens."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from lightning_distill.data.tasks.base import NUM_SAMPLES, DistillationData
from lightning_distill.models.generation import Sampling, generate

PROMPT = 8  # tokens of a prompt that are read
STEPS = 3  # tokens that are generated after the first
SAMPLE_TOKENS = 48  # of a sample


class _Clock(LogitsProcessor):
    """Records when each token is chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return scores


def answer_seconds(data: DistillationData, model: PreTrainedModel) -> float:
    """Of `score_generation` and of the samples, if no answer ends before the longest may.

    Reads PROMPT tokens of a batch of prompts and of one prompt, and generates STEPS tokens.
    """
    if not data.is_generative:
        return 0.0
    prompts, seconds = data.scored_prompts(), 0.0
    batches = [
        prompts[i : i + data.generation_batch]
        for i in range(0, len(prompts), data.generation_batch)
    ]
    if batches:
        read, step = _seconds(data, model, len(batches[0]))
        for batch in batches:
            lengths = [len(prompt) for prompt in batch]
            used = min(lengths) if data.continues_prompt else 0
            seconds += read * max(lengths) / PROMPT + step * max(0, data.max_length - used)
    _, step = _seconds(data, model, 1)
    return seconds + NUM_SAMPLES * SAMPLE_TOKENS * step


def _seconds(data: DistillationData, model: PreTrainedModel, count: int) -> tuple[float, float]:
    """To read PROMPT tokens of so many prompts, and to generate a token for each of them."""
    ids: Tensor = data.examples("test")[0]["input_ids"][:PROMPT]
    clock, start = _Clock(), time.perf_counter()
    length = STEPS + 1 + (len(ids) if data.continues_prompt else 0)
    generate(model, data.tokenizer, [ids] * count, length, Sampling(0.0), 0, [], clock)
    read, *steps = clock.times
    each = (steps[-1] - read) / len(steps) if steps else 0.0
    return max(0.0, read - start), each
