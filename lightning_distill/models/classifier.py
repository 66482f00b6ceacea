"""A loaded classifier's labels brought into the order of the data's."""

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


def adapt_head(model: PreTrainedModel, name: str, labels: Sequence[str], trains: bool) -> None:
    """Has the model's i-th logit speak of labels[i].

    One that knows these labels keeps its head, with the rows in their order. Another gets a new
    head if it is trained further. Raises ConfigError where it is not.
    """
    config: Any = model.config
    trained = type(model).__name__ in (config.architectures or [])  # whether the head is loaded too
    theirs = [str(config.id2label[i]) for i in range(config.num_labels)]
    generic = all(re.fullmatch(r"LABEL_\d+", label) for label in theirs)
    if trained and sorted(theirs) == sorted(labels):
        _reorder(model, name, [theirs.index(label) for label in labels])
    elif trained and generic and len(theirs) == len(labels):
        _tell(name, tuple(labels))
    elif trains:
        _renew(model, name, len(labels))
    elif not trained:
        raise ConfigError(
            f"teacher.name={name} has no trained head for labels. Set teacher.max_steps to train "
            "one, or name a fine-tuned classifier."
        )
    else:
        raise ConfigError(f"teacher.name={name}: {_difference(theirs, labels)}.")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def _difference(theirs: Sequence[str], labels: Sequence[str]) -> str:
    unknown = [label for label in labels if label not in theirs]
    more = [label for label in theirs if label not in labels]
    parts = [f"it does not know the label {_list(unknown)}"] if unknown else []
    parts += [f"it also chooses {_list(more)}, which the data lack"] if more else []
    return ", and ".join(parts) + "; set teacher.max_steps to train a head for these labels"


def _list(labels: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, labels[:most])) + (", …" if len(labels) > most else "")


@torch.no_grad()
def _reorder(model: PreTrainedModel, name: str, order: list[int]) -> None:
    if order == sorted(order):
        return
    linear = _output(model, name)[1]
    linear.weight.copy_(linear.weight[order].clone())
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[order].clone())


def _renew(model: PreTrainedModel, name: str, count: int) -> None:
    """A head with random weights, which follow torch's random state."""
    path, old = _output(model, name)
    new = nn.Linear(
        old.in_features, count, old.bias is not None, old.weight.device, old.weight.dtype
    )
    nn.init.normal_(new.weight, std=0.02)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, new)
    setattr(model, "num_labels", count)  # noqa: B010 (only classifiers have it)


def _output(model: PreTrainedModel, name: str) -> tuple[str, nn.Linear]:
    """The last matrix of what stands on the encoder, which makes the logits."""
    body = set(model.base_model.modules())
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in body
    ]
    if not found or found[-1][1].out_features != model.config.num_labels:
        raise ConfigError(
            f"name={name}: the head of a {type(model).__name__} does not end in one matrix, so its "
            "labels cannot be brought into the data's order."
        )
    return found[-1]


@cache
def _tell(name: str, labels: tuple[str, ...]) -> None:
    log.info("%s does not name its labels: they are taken in order, %s", name, _list(labels, 20))
