"""How large models are, and how fast they write, on this machine: `evaluate.speed`."""

import logging
import time
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.models.inspection import max_positions, weight_bytes

log = logging.getLogger(__name__)

PROMPT_TOKENS = 64
NEW_TOKENS = 64
ROUNDS = 5  # whose median counts, after one that does not
FIRST_TOKENS = 3  # a round: they are short, so that any disturbance shows


def speeds(models: dict[str, PreTrainedModel]) -> dict[str, dict[str, float]]:
    """`bytes`, `tokens_per_second` and `first_token_seconds` of each, where the models are.

    Each goes on from one prompt of 64 tokens, greedily, with its cache: by one token, then by 64.
    Tokens a second are those 64 by the time of the whole call, the reading of the prompt included;
    both lengths are half of the positions where a model has fewer than 128. The models take turns,
    so that what else the machine does slows down all of them.
    """
    room = min([PROMPT_TOKENS + NEW_TOKENS, *filter(None, map(max_positions, models.values()))])
    width, new = min(PROMPT_TOKENS, room // 2), min(NEW_TOKENS, room // 2)
    first: dict[str, list[float]] = {role: [] for role in models}
    whole: dict[str, list[float]] = {role: [] for role in models}
    plan = [(first, 1)] * FIRST_TOKENS + [(whole, new)]
    for is_warm in [False] + [True] * ROUNDS:
        for seconds, count in plan:
            for role, model in models.items():
                taken = _seconds(model, width, count)
                if is_warm:
                    seconds[role].append(taken)
    return {
        role: {
            "bytes": weight_bytes(model),
            "tokens_per_second": new / median(whole[role]),
            "first_token_seconds": median(first[role]),
        }
        for role, model in models.items()
    }


def compare(found: dict[str, dict[str, float]]) -> str:
    """What a log says of it."""
    lines = [
        f"{role}: {one['bytes'] / 1e6:,.1f} MB of weights, "
        f"{one['tokens_per_second']:,.1f} tokens/s, "
        f"first token after {1e3 * one['first_token_seconds']:,.1f} ms"
        for role, one in found.items()
    ]
    if len(found) == 2:
        student, teacher = found["student"], found["teacher"]
        faster = student["tokens_per_second"] / teacher["tokens_per_second"]
        sooner = teacher["first_token_seconds"] / student["first_token_seconds"]
        smaller = teacher["bytes"] / student["bytes"]
        lines.append(
            f"the student writes {faster:.2f} times as fast as its teacher, its first token comes "
            f"{sooner:.2f} times as soon, and it is {smaller:.2f} times smaller"
        )
    return "\n".join(lines)


@torch.no_grad()
def _seconds(model: Any, width: int, new: int) -> float:
    """Of going on by exactly so many tokens. Which tokens they are changes nothing."""
    most = model.get_input_embeddings().num_embeddings
    prompt = (torch.arange(width, device=model.device) % most)[None]
    model.eval()
    _wait_for(model.device)
    start = time.perf_counter()
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
    )
    _wait_for(model.device)
    seconds = time.perf_counter() - start
    # An encoder–decoder begins its own text with one token.
    assert written.shape[1] == new + (1 if model.config.is_encoder_decoder else width)
    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
