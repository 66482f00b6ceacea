"""The output head of a language model, separate from the layers below it.

`Predictor` calls a model without its head where the two can be separated.
"""

import logging
import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError
from lightning_distill.models.inspection import decoder_start, position_offset
from lightning_distill.models.predictions import Head, Predictions

log = logging.getLogger(__name__)

# Keys of configs by which architectures scale their logits.
MULTIPLIERS = ("logit_scale", "lm_head_multiplier")  # Cohere; Falcon-H1
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")  # Granite, MiniCPM3; Inkling
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma; RecurrentGemma

# The inputs of a model in a batch, which also has labels and more.
INPUTS = (
    *("input_ids", "attention_mask", "position_ids", "decoder_input_ids"),
    *("token_type_ids", "pixel_values"),
)


class Predictor:
    """Calls a model on a batch, without the output head where that is separable.

    vocab_size: V of `Predictions`. split: False to compute the logits at once.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int, split: bool = True) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.head = find_head(model) if split else None
        self.settings = {"use_cache": False} if model.can_generate() else {}
        self.offset = position_offset(model)
        self.start = decoder_start(model) if model.config.is_encoder_decoder else None

    def __call__(self, batch: dict[str, Tensor]) -> Predictions:
        """batch: `INPUTS`; and `labels`, which an encoder-decoder's decoder reads shifted."""
        inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
        labels = batch.get("labels")
        if self.start is not None and labels is not None and labels.ndim == 2:  # no classifier's
            inputs.setdefault("decoder_input_ids", shift_right(labels, self.start))
        if self.offset and "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"] + self.offset
        inputs |= self.settings
        states = self.forward(**inputs)
        if labels is not None and states.shape[:-1] != labels.shape:  # Perceiver's
            raise ConfigError(
                f"A {type(self.model).__name__} gives predictions {list(states.shape[:-1])} for "
                f"labels {list(labels.shape)}: they are not one for each token. Name another model."
            )
        return Predictions(states, self.head, self.vocab_size)

    def forward(self, **inputs: Any) -> Tensor:
        """The model's last hidden states, or its logits where there is no head."""
        return forward(self.model, self.head is None, **inputs)

    def compile(self) -> None:
        """Compiles the forward pass, also a sharded model's (`models/sharding.py`)."""
        replaced = self.__dict__.get("forward")
        plain = partial(forward, self.model, self.head is None)
        self.forward = torch.compile(replaced or plain)  # type: ignore[method-assign]


def forward(model: Any, to_logits: bool, **inputs: Any) -> Tensor:
    if to_logits:
        logits: Tensor = model(**inputs).logits
        return logits
    states: Tensor = model.base_model(**inputs).last_hidden_state
    return states


def shift_right(labels: Tensor, start: int) -> Tensor:
    """A decoder's input ids for teacher forcing: `start`, then all but the last label, [B, T].

    Where labels are -100, behind the last one, the ids are 0 and have no effect.
    """
    before = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
    return before.clamp(min=0)


def find_head(model: PreTrainedModel) -> Head | None:
    """The model's output head; None, with a log line, where its logits are computed otherwise.

    What the config says is verified on a few tokens, because an architecture may do more to its
    logits than the few keys read here.
    """
    linear = model.get_output_embeddings()
    if linear is None:  # a classifier, whose logits are few
        return None
    config = model.config.get_text_config()
    if isinstance(linear, nn.Linear) and model.base_model is not model:
        scale = math.prod(getattr(config, key, None) or 1.0 for key in MULTIPLIERS)
        scale /= math.prod(getattr(config, key, None) or 1.0 for key in DIVISORS)
        if getattr(config, "scale_decoder_outputs", False):  # T5
            scale *= config.d_model**-0.5
        softcaps = (getattr(config, key, None) for key in SOFTCAPS)
        head = Head(linear, scale, next((cap for cap in softcaps if cap), None))
        if _computes_logits(head, model):
            return head
    _log_once(type(model).__name__)
    return None


@cache
def _log_once(architecture: str) -> None:
    log.info(
        "%s: logits are more than a matrix product, so all of them are held in memory",
        architecture,
    )


@torch.no_grad()
def _computes_logits(head: Head, model: PreTrainedModel) -> bool:
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
        if states.shape[-1] != head.linear.in_features:  # another layer comes first
            return False
        logits = head.finish(head.linear(states).float())
    finally:
        model.train(was_training)
    tolerance = 1e-4 if head.linear.weight.dtype.itemsize >= 4 else 2e-2
    return torch.allclose(logits, expected, tolerance, tolerance, equal_nan=True)
