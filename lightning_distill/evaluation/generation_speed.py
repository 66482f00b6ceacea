"""The size of models and the speed at which they generate on this machine: `evaluate.speed`."""

import logging
import time
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.models.inspection import embedding_rows, max_positions, weight_bytes

log = logging.getLogger(__name__)

PROMPT_TOKENS = 64
NEW_TOKENS = 64
ROUNDS = 5  # after one for warm-up; the median counts
FIRST_TOKENS = 3  # per round: they are short, so noise shows


def measure_speeds(models: dict[str, PreTrainedModel]) -> dict[str, dict[str, float]]:
    """`bytes`, `tokens_per_second` and `first_token_seconds` of each model, on its device.

    Each model continues a prompt of 64 tokens greedily, with its KV cache: by one token, then by
    64. `tokens_per_second` is 64 divided by the time of the whole call, prompt included. Where a
    model has fewer than 128 positions, both lengths are half of those, for all models. The models
    take turns, so that other load on the machine slows all of them.
    """
    total = min([PROMPT_TOKENS + NEW_TOKENS, *filter(None, map(max_positions, models.values()))])
    width, new = min(PROMPT_TOKENS, total // 2), min(NEW_TOKENS, total // 2)
    first: dict[str, list[float]] = {role: [] for role in models}
    full: dict[str, list[float]] = {role: [] for role in models}
    calls = [(first, 1)] * FIRST_TOKENS + [(full, new)]
    for is_warm in [False] + [True] * ROUNDS:
        for times, count in calls:
            for role, model in models.items():
                seconds = _time_generation(model, width, count)
                if is_warm:
                    times[role].append(seconds)
    return {
        role: {
            "bytes": weight_bytes(model),
            "tokens_per_second": new / median(full[role]),
            "first_token_seconds": median(first[role]),
        }
        for role, model in models.items()
    }


def describe_speeds(speeds: dict[str, dict[str, float]]) -> str:
    """Lines for the log: each model's numbers and, of two models, the ratios."""
    lines = [
        f"{role}: {speed['bytes'] / 1e6:,.1f} MB of weights, "
        f"{speed['tokens_per_second']:,.1f} tokens/s, "
        f"first token after {1e3 * speed['first_token_seconds']:,.1f} ms"
        for role, speed in speeds.items()
    ]
    if len(speeds) == 2:
        student, teacher = speeds["student"], speeds["teacher"]
        throughput = student["tokens_per_second"] / teacher["tokens_per_second"]
        latency = teacher["first_token_seconds"] / student["first_token_seconds"]
        size = teacher["bytes"] / student["bytes"]
        lines.append(
            f"the student generates {throughput:.2f} times as fast as its teacher, its first token "
            f"comes {latency:.2f} times as soon, and it is {size:.2f} times smaller"
        )
    return "\n".join(lines)


@torch.no_grad()
def _time_generation(model: Any, width: int, new: int) -> float:
    """Seconds to continue a prompt of `width` tokens by exactly `new`. Any ids will do."""
    vocab_size = embedding_rows(model) or width
    prompt = (torch.arange(width, device=model.device) % vocab_size)[None]
    model.eval()
    _synchronize(model.device)
    start = time.perf_counter()
    sequences = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
    )
    _synchronize(model.device)
    seconds = time.perf_counter() - start
    # The output of an encoder-decoder model starts with one token instead of the prompt.
    assert sequences.shape[1] == new + (1 if model.config.is_encoder_decoder else width)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
