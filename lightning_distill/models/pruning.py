"""Students that start as a part of their teacher: some of its layers, heads and channels.

Muralidharan et al. 2024, Minitron. Layers are chosen by their position, and the width as in
`width_pruning`.

Measured on the demo's teacher, 4 layers of 128 with a validation NLL of 4.27, before any training:
- layers 1 and 4 give 4.54, 1 and 3 4.56, 1 and 2 4.62, but 2 and 4 (to which `loss.hidden` maps)
  7.77; `uniform` therefore keeps both ends;
- half the width gives 6.15 with the gains of the norms unchanged, and 5.31 with gains times
  √(W / W'), which is as if the removed channels were zeros in the mean;
- activations of the whole teacher choose no better than those of the layers kept.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lightning_distill.config.teacher_parts import problems_of_layers
from lightning_distill.errors import ConfigError
from lightning_distill.models.inspection import find_layers, is_outline
from lightning_distill.models.width_pruning import (
    activation_importance,
    calibrate,
    can_be_narrowed,
    narrow,
    new_like,
    num_heads,
    queries_per_key,
)

log = logging.getLogger(__name__)

INFLUENCE = "influence"


@dataclass(frozen=True)
class PruningSettings:
    """The part of the teacher that a student starts from; None for all of it.

    layers: `uniform`, `first`, `last`, `influence`, or a list of the teacher's layers, counted from
    1. `influence` keeps those with the largest `block_influence`.
    """

    num_hidden_layers: int | None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    layers: str | Sequence[int] = "uniform"


def prune_teacher(
    teacher: PreTrainedModel, settings: PruningSettings, batches: Iterable[dict[str, Tensor]]
) -> PreTrainedModel:
    """A new model of the teacher's class, with as many layers, channels and heads as requested.

    The rest of its config is the teacher's, the size of a head included; the MLP shrinks with the
    width, to a multiple of 8.
    batches: input_ids and position_ids, [B, T]; the first of them are read for layers by influence,
    and for a narrower student. Raises ConfigError where the teacher has no such part; a teacher on
    the meta device is enough to find out.
    """
    if problems := list(_problems(teacher, settings)):
        raise ConfigError("; ".join(problems) + ".")
    config = teacher.config.get_text_config()
    layers = _kept_layers(teacher, settings, batches)
    if not is_outline(teacher):
        log.info("the student starts from the teacher's layers %s", ", ".join(map(str, layers)))
    width = settings.hidden_size or config.hidden_size
    heads = settings.num_attention_heads or num_heads(config)
    student = _keep_layers(teacher, layers)
    if width < config.hidden_size or heads < num_heads(config):
        student = narrow(student, width, heads, activation_importance(student, batches))
    return student.train()


def _problems(teacher: PreTrainedModel, settings: PruningSettings) -> Iterator[str]:
    config, name = teacher.config.get_text_config(), type(teacher).__name__
    available, count = config.num_hidden_layers, settings.num_hidden_layers
    if config.is_encoder_decoder:
        yield (
            f"student.initialize=teacher_layers: a {name} is an encoder and a decoder, and only a "
            "decoder's layers can be chosen; set student.initialize=random"
        )
        return
    if find_layers(teacher) is None:
        yield f"student.initialize=teacher_layers: a {name} has no list of {available} layers"
        return
    layers = settings.layers if isinstance(settings.layers, str) else list(settings.layers)
    if problems := list(problems_of_layers(layers, count)):
        yield from problems
    elif count is not None and count > available:
        yield f"student.layers: {count} layers are more than the teacher's {available}"
    elif isinstance(layers, list) and max(layers) > available:
        yield f"student.layers={layers}: the teacher has layers 1 to {available}"
    yield from _problems_of_width(teacher, settings)


def _problems_of_width(teacher: PreTrainedModel, settings: PruningSettings) -> Iterator[str]:
    config, name = teacher.config.get_text_config(), type(teacher).__name__
    teacher_width, teacher_heads = config.hidden_size, num_heads(config)
    width = settings.hidden_size or teacher_width
    heads = settings.num_attention_heads or teacher_heads
    if can_be_narrowed(teacher):
        group = queries_per_key(config)
        if width > teacher_width:
            yield f"student.hidden_size={width} is more than the teacher's {teacher_width}"
        if heads > teacher_heads or heads % group:
            shared = f", each {group} of which share their keys" if group > 1 else ""
            yield (
                f"student.num_attention_heads={heads} does not fit the teacher's "
                f"{teacher_heads}{shared}"
            )
    elif width != teacher_width or (teacher_heads and heads != teacher_heads):
        also = f" and student.num_attention_heads={teacher_heads}" if teacher_heads else ""
        yield (
            f"student.hidden_size={width} and student.num_attention_heads={heads}: only the layers "
            f"of a {name} can be pruned; set student.hidden_size={teacher_width}{also}"
        )


def _kept_layers(
    teacher: PreTrainedModel, settings: PruningSettings, batches: Iterable[dict[str, Tensor]]
) -> list[int]:
    """The teacher's layers to keep, counted from 1. `uniform` includes the first and the last."""
    available = teacher.config.get_text_config().num_hidden_layers
    layers, count = settings.layers, settings.num_hidden_layers or available
    if layers == "first":
        return list(range(1, count + 1))
    if layers == "last":
        return list(range(available - count + 1, available + 1))
    if layers == INFLUENCE and not is_outline(teacher):  # which has as many layers, of any place
        influence = block_influence(teacher, batches)
        log.info("block influence: %s", " ".join(f"{one:.3f}" for one in influence.tolist()))
        return [1 + int(layer) for layer in influence.topk(count).indices.sort().values]
    if isinstance(layers, str):
        step = (available - 1) / max(1, count - 1)
        return [1 + round(i * step) for i in range(count)]
    return list(layers)


def block_influence(teacher: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """How much each layer changes its input: [L].

    1 − cos(input, output) of a layer, averaged over the tokens of the first batches. Men et al.
    2024, ShortGPT, eq. 1.
    """
    named_layers = find_layers(teacher)
    assert named_layers, "checked by _problems"
    sums = torch.zeros(len(named_layers[1]), dtype=torch.float64)

    def add(number: int, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        similarity = F.cosine_similarity(before.float(), after.float(), dim=-1)
        sums[number] += float((1 - similarity).sum())

    layers = enumerate(named_layers[1])
    handles = [one.register_forward_hook(partial(add, i), with_kwargs=True) for i, one in layers]
    return sums / calibrate(teacher, batches, handles)


def _keep_layers(teacher: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A copy of the teacher with the layers `kept`, counted from 1."""
    named_layers = find_layers(teacher)
    assert named_layers, "checked by _problems"
    name, layers = named_layers
    config = deepcopy(teacher.config)
    text_config = config.get_text_config()
    for key, value in vars(text_config).items():
        if "layer" in key and isinstance(value, list) and len(value) == len(layers):
            setattr(text_config, key, [value[layer - 1] for layer in kept])  # such as layer_types
    text_config.num_hidden_layers = len(kept)
    student = new_like(teacher, config)
    weights = teacher.state_dict()
    outside = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
    student.load_state_dict(outside, strict=False)
    for index, layer in enumerate(kept):
        try:
            student_layer = student.get_submodule(f"{name}.{index}")
            student_layer.load_state_dict(layers[layer - 1].state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"student.layers={kept}: the layers of a {type(teacher).__name__} differ, and its "
                f"layer {layer} cannot be the student's layer {index + 1}; choose others."
            ) from error
    return student
