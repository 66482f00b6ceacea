"""The last step of a language model, set apart: from hidden states to logits.

Logits are as wide as the vocabulary, hidden states are not. So what a model predicts is handed on
as its last hidden states and the matrix that makes logits of them; who needs logits makes them
for a few positions at a time.
"""

import logging
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """softcap · tanh(scale · (W h + b) / softcap), or scale · (W h + b) without a softcap."""

    linear: nn.Linear
    scale: float
    softcap: float | None

    def finish(self, products: Tensor) -> Tensor:
        """W h + b to logits."""
        if self.scale != 1:
            products = products * self.scale
        if self.softcap:
            products = self.softcap * torch.tanh(products / self.softcap)
        return products


@dataclass(frozen=True)
class Predictions:
    """What a model says of the tokens that come next.

    states: last hidden states [..., D], or logits [..., V'] where there is no head.
    vocab_size: V of the tokenizer, or the number of classes. Rows of a padded embedding beyond it
    take no part.
    """

    states: Tensor
    head: Head | None
    vocab_size: int

    def logits(self) -> Tensor:
        """[..., V], in at least 32 bits."""
        if self.head is None:
            logits = self.states[..., : self.vocab_size]
            return logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight, bias = self.output()
        products = F.linear(self.states, weight, bias)
        return self.head.finish(products.to(torch.promote_types(products.dtype, torch.float32)))

    def output(self) -> tuple[Tensor, Tensor | None]:
        """The output matrix W [V, D] and the bias b [V], where the head has one."""
        assert self.head is not None
        weight: Tensor = self.head.linear.weight
        bias: Tensor | None = self.head.linear.bias
        if len(weight) > self.vocab_size:  # a slice of all rows would still cost a copy
            weight = weight[: self.vocab_size]
            bias = None if bias is None else bias[: self.vocab_size]
        return weight, bias

    def at(self, positions: Tensor | slice) -> "Predictions":
        """Those at some of the flattened positions: indices [N] or a slice."""
        states = self.states.flatten(0, -2)[positions]
        return Predictions(states, self.head, self.vocab_size)

    def gather(self, where: Tensor) -> "Predictions":
        """Those at other times of the same rows: [B, T', ...] and indices [B, T] to [B, T, ...]."""
        index = where[..., None].expand(-1, -1, self.states.shape[-1])
        return Predictions(self.states.gather(1, index), self.head, self.vocab_size)


# What of a batch a model reads; the rest is for us.
INPUTS = (
    *("input_ids", "attention_mask", "position_ids", "decoder_input_ids"),
    *("token_type_ids", "pixel_values"),
)


class Predictor:
    """Calls a model on a batch, and stops short of the logits where its head allows it.

    vocab_size: V of `Predictions`. split: False to have logits whatever the head.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int, split: bool = True) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.head = find_head(model) if split else None
        self.settings = {"use_cache": False} if model.can_generate() else {}

    def __call__(self, batch: dict[str, Tensor]) -> Predictions:
        """batch: what the model reads of it, `INPUTS`. A decoder behind an encoder reads the
        labels."""
        inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
        config = self.model.config
        if config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = shifted(batch["labels"], config.decoder_start_token_id)
        inputs |= self.settings
        return Predictions(self.read(**inputs), self.head, self.vocab_size)

    def read(self, **inputs: Any) -> Tensor:
        """The model's last hidden states, or its logits where there is no head."""
        return read(self.model, self.head is None, **inputs)

    def compile(self) -> None:
        """Has torch.compile make it faster, from the first batch on."""
        own = self.__dict__.get("read") or partial(read, self.model, self.head is None)
        self.read = torch.compile(own)  # type: ignore[method-assign]


def read(model: Any, whole: bool, **inputs: Any) -> Tensor:
    said: Tensor = model(**inputs).logits if whole else model.base_model(**inputs).last_hidden_state
    return said


def shifted(labels: Tensor, start: int) -> Tensor:
    """What a decoder reads where the labels [B, T] are to be predicted: `start`, and then those
    before each of them. Behind the last one it does not matter."""
    before = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
    return before.clamp(min=0)


def find_head(model: PreTrainedModel) -> Head | None:
    """The model's head; None, with a line in the log, where it is of another kind.

    What the config says is tried on a few tokens, because an architecture may do more to its
    logits than any list of ours knows.
    """
    linear = model.get_output_embeddings()
    if linear is None:  # a classifier, whose logits are few
        return None
    config = model.config.get_text_config()
    if isinstance(linear, nn.Linear) and model.base_model is not model:
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
        softcap = getattr(config, "final_logit_softcapping", None)  # Gemma
        head = Head(linear, scale, softcap)
        if _makes_the_logits(head, model):
            return head
    _tell(type(model).__name__)
    return None


@cache
def _tell(name: str) -> None:
    """Once for each architecture, however often it is looked at."""
    log.info("%s: its logits are more than a matrix product, so they are held as a whole", name)


@torch.no_grad()
def _makes_the_logits(head: Head, model: PreTrainedModel) -> bool:
    was_training = model.training
    model.eval()
    ids = torch.arange(min(8, head.linear.out_features), device=head.linear.weight.device)[None]
    inputs: dict[str, Any] = {"input_ids": ids}
    if model.can_generate():
        inputs["use_cache"] = False
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        expected = model(**inputs).logits.float()
        states = model.base_model(**inputs).last_hidden_state
        found = head.finish(head.linear(states).float())
    finally:
        model.train(was_training)
    tolerance = 1e-4 if head.linear.weight.dtype.itemsize >= 4 else 2e-2
    return torch.allclose(found, expected, tolerance, tolerance, equal_nan=True)
