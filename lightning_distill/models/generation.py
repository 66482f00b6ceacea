"""Text generation with transformers."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)
from transformers.generation import BaseStreamer

from lightning_distill.distributed import process_group
from lightning_distill.models.inspection import decoder_start, max_positions, vocabulary_size
from lightning_distill.models.pretrained import reset_sampling
from lightning_distill.models.probes import ignores_left_padding


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 for greedy decoding. top_p: sample from the fewest tokens whose probabilities sum
    to top_p (nucleus sampling). num_beams: above 1, beam search instead of sampling.
    """

    temperature: float
    top_p: float = 1.0
    num_beams: int = 1


class NonFiniteLogits(LogitsProcessor):
    """Replaces NaN and Inf in the logits of a generation, and records whether there were any.

    The record stays on the device, so that no step waits for the GPU.
    """

    def __init__(self) -> None:
        self._all_finite: Tensor | None = None

    @property
    def seen(self) -> bool:
        return self._all_finite is not None and not self._all_finite

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        finite = (scores < torch.inf).all()  # suppressed tokens are at -Inf
        self._all_finite = finite if self._all_finite is None else self._all_finite & finite
        return scores.nan_to_num(0.0, 0.0, -torch.inf)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Tensor],
    length: int,
    sampling: Sampling,
    seed: int,
    stops: Sequence[int] | None = None,
    watch: LogitsProcessor | None = None,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """The new tokens for each prompt, which is [P] token ids.

    A causal language model generates up to `length` tokens, prompt included, and at most as many as
    it has positions; an encoder-decoder model up to `length` new ones. Either ends with the first
    of `stops`: None for the end-of-text token. Deterministic for a seed and a kind of device; the
    RNG's state is left as it was. streamer: receives the tokens of a single prompt's completion as
    they are generated.
    """
    encodes = model.config.is_encoder_decoder
    stops = [tokenizer.eos_token_id] if stops is None else list(stops)
    prompt_lengths = [0 if encodes else len(prompt) for prompt in prompts]
    positions = None if encodes else max_positions(model)
    length = min(length, positions or length)
    new_tokens = max(1, length - min(prompt_lengths))
    overrun = bool(positions and max(prompt_lengths) + new_tokens > positions)
    if len(set(prompt_lengths)) > 1:
        if overrun or not ignores_left_padding(model):
            more = length, sampling, seed, stops, watch
            return _by_length(prompts, lambda some: generate(model, tokenizer, some, *more))
    elif overrun:
        return [[] for _ in prompts]
    input_ids, attention_mask = _padded(prompts, tokenizer.eos_token_id, left=not encodes)
    settings = _generation_config(model, tokenizer, sampling, new_tokens, stops)
    was_training = model.training
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        with _without_sampling_defaults(model):
            sequences = model.generate(
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([watch] if watch else []),
                streamer=streamer,
                # Sharded weights are gathered for each token, by all devices together.
                synced_gpus=process_group.is_distributed() and isinstance(model, FSDPModule),
            )
        model.train(was_training)
    # What a decoder generates follows its start token; what a language model does, its prompt.
    start = 1 if encodes else input_ids.shape[1]
    pairs = zip(prompt_lengths, sequences[:, start:].tolist(), strict=True)
    return [_up_to_stop(new[: max(0, length - used)], stops) for used, new in pairs]


@contextmanager
def _without_sampling_defaults(model: Any) -> Iterator[None]:
    """transformers takes what `generation_config` leaves open, min_p for one, from the model's."""
    saved = model.generation_config
    model.generation_config = copy.deepcopy(saved)
    reset_sampling(model.generation_config)
    try:
        yield
    finally:
        model.generation_config = saved


def _by_length(
    prompts: list[Tensor], complete: Callable[[list[Tensor]], list[list[int]]]
) -> list[list[int]]:
    """Completes the prompts of each length together, without padding."""
    completions: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        indices = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        for i, completion in zip(indices, complete([prompts[i] for i in indices]), strict=True):
            completions[i] = completion
    return completions


def _padded(prompts: list[Tensor], pad_token: int, left: bool) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, [B, P]."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        place = slice(width - len(prompt), None) if left else slice(len(prompt))
        ids[i, place], mask[i, place] = prompt, 1
    return ids, mask


def _generation_config(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    max_new_tokens: int,
    stops: list[int],
) -> GenerationConfig:
    config = model.config
    sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    # Rows of a padded embedding, which stand for no token.
    padding = range(vocabulary_size(tokenizer), config.get_text_config().vocab_size)
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        **(sampled if sampling.temperature > 0 else {}),
        num_beams=sampling.num_beams,
        use_cache=True,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=tokenizer.eos_token_id,
        suppress_tokens=list(padding) or None,
        decoder_start_token_id=decoder_start(model) if config.is_encoder_decoder else None,
    )


def _up_to_stop(tokens: list[int], stops: list[int]) -> list[int]:
    """Tokens up to the first stop token, which is included."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


def seed_of(*numbers: int) -> int:
    """A seed that differs for each combination of numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
