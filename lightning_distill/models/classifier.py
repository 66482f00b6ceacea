"""Pretrained classifiers whose labels are brought into the order of the data's."""

import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)


def adapt_head(model: PreTrainedModel, name: str, labels: Sequence[str], is_trained: bool) -> None:
    """Makes the model's i-th logit the one of labels[i], in place.

    A head for the same labels is kept, with its rows reordered. Any other is replaced by a new one
    if the model is trained further. name: the model's, for messages. Raises ConfigError where the
    head does not fit and is not trained.
    """
    config: Any = model.config
    if config.problem_type in ("multi_label_classification", "regression"):
        if not is_trained:
            raise ConfigError(
                f"teacher.name={name}, of problem_type={config.problem_type}, does not choose one "
                "of its labels. Set teacher.max_steps to train it to, or name another classifier."
            )
        config.problem_type = "single_label_classification"
    head_is_loaded = type(model).__name__ in (config.architectures or [])
    model_labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    is_unnamed = all(re.fullmatch(r"LABEL_\d+", label) for label in model_labels)
    if head_is_loaded and sorted(model_labels) == sorted(labels):
        _reorder(model, name, [model_labels.index(label) for label in labels])
    elif head_is_loaded and is_unnamed and len(model_labels) == len(labels):
        _log_assumed_order(name, tuple(labels))
    elif is_trained:
        _replace_head(model, name, len(labels))
    elif not head_is_loaded:
        raise ConfigError(
            f"teacher.name={name} has no trained head for labels. Set teacher.max_steps to train "
            "one, or name a fine-tuned classifier."
        )
    else:
        raise ConfigError(f"teacher.name={name}: {_difference(model_labels, labels)}.")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def _difference(model_labels: Sequence[str], labels: Sequence[str]) -> str:
    unknown = [label for label in labels if label not in model_labels]
    extra = [label for label in model_labels if label not in labels]
    parts = [f"it does not know the label {_quoted(unknown)}"] if unknown else []
    parts += [f"it also predicts {_quoted(extra)}, which the data lack"] if extra else []
    return ", and ".join(parts) + "; set teacher.max_steps to train a head for these labels"


def _quoted(labels: Sequence[str], at_most: int = 5) -> str:
    return ", ".join(map(repr, labels[:at_most])) + (", …" if len(labels) > at_most else "")


@torch.no_grad()
def _reorder(model: PreTrainedModel, name: str, order: list[int]) -> None:
    if order == sorted(order):
        return
    linear = _output_layer(model, name)[1]
    linear.weight.copy_(linear.weight[order].clone())
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[order].clone())


def _replace_head(model: PreTrainedModel, name: str, count: int) -> None:
    """A new output layer: weights N(0, 0.02²) from torch's global RNG, biases 0."""
    path, old = _output_layer(model, name)
    new = nn.Linear(
        old.in_features, count, old.bias is not None, old.weight.device, old.weight.dtype
    )
    nn.init.normal_(new.weight, std=0.02)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(path, new)
    setattr(model, "num_labels", count)  # noqa: B010 (only classifiers have it)


def _output_layer(model: PreTrainedModel, name: str) -> tuple[str, nn.Linear]:
    """The last linear layer on top of the encoder, which makes the logits; and its path."""
    body = set(model.base_model.modules())
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in body
    ]
    if not layers or layers[-1][1].out_features != model.config.num_labels:
        raise ConfigError(
            f"name={name}: the head of a {type(model).__name__} does not end in a linear layer "
            "with a row per label, so its labels cannot be brought into the data's order."
        )
    return layers[-1]


@cache  # once per model
def _log_assumed_order(name: str, labels: tuple[str, ...]) -> None:
    log.info("%s does not name its labels; assuming the order %s", name, _quoted(labels, 20))
