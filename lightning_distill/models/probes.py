"""What a model's predictions depend on, found by trial on a few tokens.

An architecture that reads later tokens, another document or the padding says so nowhere.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lightning_distill.errors import ConfigError, one_line
from lightning_distill.models.inspection import decoder_start, embedding_rows, is_outline

PROBE_TOKENS = 4  # of each of two documents, or before what must have no effect
PADDING = 3  # tokens
PADDED_EXAMPLES = 64


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Raises ConfigError where the predictions at a position depend on later tokens.

    They are known in training, and not when text is generated. Nothing is checked on the meta
    device.
    """
    if is_outline(model):
        return
    first, second = _probe(model), _probe(model)
    second[PROBE_TOKENS:] = second[PROBE_TOKENS:].flip(0)
    ids = torch.stack([first, second])
    inputs = {"input_ids": ids}
    if _translates(model):
        inputs = {"input_ids": first.expand_as(ids), "decoder_input_ids": ids}
    before, after = _logits(model, **inputs)[:, :PROBE_TOKENS]
    if not _equal(before, after):
        raise ConfigError(
            f"{name}: what a {type(model).__name__} predicts depends on the tokens that follow. "
            "Name a causal language model; an encoder is one with is_decoder: true in its "
            "config.json."
        )


def check_isolates(model: PreTrainedModel, name: str) -> None:
    """Raises ConfigError where the predictions for a document depend on the one before it.

    Documents are told apart by positions that start at 0 again. transformers masks attention by
    them; a recurrent state (Mamba's) ignores them. On the meta device, the check is only whether
    the model takes positions.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if not takes_positions or not (is_outline(model) or _isolates_probe(model)):
        raise ConfigError(
            f"{name}: a {type(model).__name__} carries its state from one document into the "
            "next. Set data.isolate_documents=false; data=chat, which isolates conversations, "
            "needs another model."
        )


def check_padding(model: PreTrainedModel, name: str, examples: Any) -> None:
    """Raises ConfigError where the predictions for a text depend on the padding behind it.

    They then depend on the other texts of a batch, in transformers as well: FNet takes no
    attention mask, and convolutions read the padding next to a text. examples: padded, with
    `attention_mask`; the shortest of the first is tried.
    """
    if is_outline(model):
        return
    first = (examples[i] for i in range(min(len(examples), PADDED_EXAMPLES)))
    example = min(first, key=lambda one: int(one["attention_mask"].sum()))
    inputs = {key: example[key][None].to(model.device) for key in ("input_ids", "attention_mask")}
    length = int(example["attention_mask"].sum())
    decoder = {"decoder_input_ids": _probe(model)[None]} if _translates(model) else {}
    padded = _logits(model, **inputs, **decoder)
    alone = _logits(model, **{key: x[:, :length] for key, x in inputs.items()}, **decoder)
    if not _equal(alone, padded):
        raise ConfigError(
            f"{name}: what a {type(model).__name__} predicts depends on the padding of a batch, "
            "and so on its other texts. Name another model, such as BERT or ModernBERT."
        )


def check_generates(model: Any, name: str) -> None:
    """Raises ConfigError where transformers cannot generate text with the model."""
    if is_outline(model):
        return
    try:
        _generated_logits(model, 0)
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{name}: transformers {version('transformers')} cannot generate text with a "
            f"{type(model).__name__}: {one_line(error)}"
        ) from error


def ignores_left_padding(model: PreTrainedModel) -> bool:
    """Whether padding before a prompt has no effect on what is generated.

    It has where positions are counted from the first column, or a state passes through the padding.
    """
    if model not in _IGNORES_LEFT_PADDING:
        _IGNORES_LEFT_PADDING[model] = _ignores_left_padding(model)
    return _IGNORES_LEFT_PADDING[model]


_IGNORES_LEFT_PADDING: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _ignores_left_padding(model: Any) -> bool:
    return _equal(_generated_logits(model, 0), _generated_logits(model, PADDING))


def _generated_logits(model: Any, padding: int) -> Tensor:
    """Of two new tokens [2, V], after as many tokens of padding and a prompt."""
    ids = _probe(model)[None]
    before = torch.zeros_like(ids[:, :padding])
    settings = GenerationConfig(
        max_new_tokens=2, min_new_tokens=2, do_sample=False, num_beams=1, pad_token_id=0,
        decoder_start_token_id=decoder_start(model) if _translates(model) else None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    made = _in_eval_mode(
        model,
        model.generate,
        torch.cat([before, ids], 1),
        attention_mask=torch.cat([before, torch.ones_like(ids)], 1),
        generation_config=settings,
    )
    return torch.cat(made.logits)


def _translates(model: PreTrainedModel) -> bool:
    """Whether its decoder reads a text of its own; of a classifier, the same as the encoder."""
    return bool(model.config.is_encoder_decoder) and model.can_generate()


def _probe(model: PreTrainedModel) -> Tensor:
    """Token ids, [2 · PROBE_TOKENS]: from the middle of the vocabulary, as special ones are not."""
    rows = embedding_rows(model) or 4 * PROBE_TOKENS
    return (rows // 2 + torch.arange(2 * PROBE_TOKENS, device=model.device)) % rows


def _logits(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    settings = {"use_cache": False} if model.can_generate() else {}
    logits: Tensor = _in_eval_mode(model, model, **inputs, **settings).logits
    return logits


@torch.no_grad()
def _in_eval_mode(
    model: PreTrainedModel, call: Callable[..., Any], *inputs: Any, **more: Any
) -> Any:
    was_training = model.training
    model.eval()
    try:
        return call(*inputs, **more)
    finally:
        model.train(was_training)


def _equal(first: Tensor, second: Tensor) -> bool:
    """Up to rounding, which other widths and the experts of a mixture change.

    Excluded tokens have logits of -inf, and NaN is for the checks of predictions to find.
    """
    finite = first.isfinite() & second.isfinite()
    if not finite.any():
        return True
    eps = torch.finfo(first.dtype).eps
    first, second = first[finite], second[finite]
    return bool((first - second).abs().max() <= min(400 * eps, eps**0.5) * first.abs().max())


def _isolates_probe(model: PreTrainedModel) -> bool:
    """Whether a document's hidden states are the same after two different documents."""
    ids = _probe(model)
    ids = torch.stack([ids, torch.cat([ids[:PROBE_TOKENS].flip(0), ids[PROBE_TOKENS:]])])
    positions = torch.arange(PROBE_TOKENS, device=model.device).repeat(2).expand(2, -1)
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    return _equal(*_in_eval_mode(model, model.base_model, **inputs)[0][:, PROBE_TOKENS:])
