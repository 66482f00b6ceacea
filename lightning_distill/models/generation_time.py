"""How long generation takes, from a few tokens."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from lightning_distill.models.generation import Sampling, generate

STEPS = 3  # tokens that are generated after the first


class _Clock(LogitsProcessor):
    """Records when each token is chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return scores


def generation_seconds(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Tensor,
    count: int,
    sampling: Sampling,
) -> tuple[float, float]:
    """To read `count` copies of the prompt, and to generate one token for each of them.

    prompt: [P] token ids.
    """
    clock, start = _Clock(), time.perf_counter()
    length = STEPS + 1 + (0 if model.config.is_encoder_decoder else len(prompt))
    generate(model, tokenizer, [prompt] * count, length, sampling, 0, [], clock)
    read, *steps = clock.times
    return max(0.0, read - start), (steps[-1] - read) / len(steps) if steps else 0.0
