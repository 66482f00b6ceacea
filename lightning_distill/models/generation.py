"""A model writes: beginnings from the data, and what it makes of them."""

import hashlib
from collections.abc import Sequence
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

from lightning_distill.config.validation import require
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: at a temperature (0: the likeliest one), from the fewest
    tokens whose probabilities sum to top_p. With more than one of num_beams, the likeliest text
    that so many beams find."""

    temperature: float
    top_p: float = 1.0
    num_beams: int = 1

    def __post_init__(self) -> None:
        require("transfer.temperature", self.temperature, 0)
        require("transfer.top_p", self.top_p, 1e-6, 1)
        if self.num_beams > 1 and self.temperature:
            raise ConfigError(
                f"transfer.num_beams={self.num_beams} searches for the likeliest text, and "
                f"transfer.temperature={self.temperature:g} draws one; set transfer.temperature=0."
            )


class Numbers(LogitsProcessor):
    """Notes on the device whether all that is predicted is numbers, and goes on with some."""

    def __init__(self) -> None:
        self.all: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        good = (scores < torch.inf).all()  # tokens that must not come are at minus infinity
        self.all = good if self.all is None else self.all & good
        return scores.nan_to_num(0.0, 0.0, -torch.inf)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    beginnings: list[Tensor],
    length: int,
    sampling: Sampling,
    seed: int,
    stops: Sequence[int] | None = None,
    watch: LogitsProcessor | None = None,
) -> list[list[int]]:
    """What a causal language model puts behind each beginning, which is [P] token ids: up to
    `length` tokens in all, or up to the first of `stops`, which is the end-of-text token unless
    others are named. What an encoder-decoder makes of it: up to `length` tokens besides. The same
    for the same seed, on the same kind of device."""
    answers = model.config.is_encoder_decoder
    width = max(map(len, beginnings))
    eos: int = tokenizer.eos_token_id
    stops = [eos] if stops is None else list(stops)
    ids = torch.full((len(beginnings), width), eos)
    mask = torch.zeros_like(ids)
    for row, shown, own in zip(ids, mask, beginnings, strict=True):
        place = slice(len(own)) if answers else slice(width - len(own), None)
        row[place] = own
        shown[place] = 1
    begun = [0 if answers else len(own) for own in beginnings]
    sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    padding = range(len(tokenizer), model.config.get_text_config().vocab_size)
    settings = GenerationConfig(
        do_sample=sampling.temperature > 0,
        **(sampled if sampling.temperature > 0 else {}),
        num_beams=sampling.num_beams,
        use_cache=True,
        repetition_penalty=1.0,
        max_new_tokens=max(1, length - min(begun)),
        eos_token_id=stops,
        pad_token_id=eos,
        suppress_tokens=list(padding) or None,
        decoder_start_token_id=model.config.decoder_start_token_id if answers else None,
    )
    was_training = model.training
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        written = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([watch] if watch else []),
            # A model in shards is put together by all devices for each token.
            synced_gpus=process_group.is_distributed() and isinstance(model, FSDPModule),
        )
        model.train(was_training)
    found = []
    # An answer begins behind the decoder's first token, which is not of it.
    for there, row in zip(begun, written[:, 1 if answers else width :].tolist(), strict=True):
        new = row[: max(0, length - there)]
        end = next((i for i, token in enumerate(new) if token in stops), len(new))
        found.append(new[: end + 1])
    return found


def seed_of(*numbers: int) -> int:
    """A seed of its own for each combination of numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
