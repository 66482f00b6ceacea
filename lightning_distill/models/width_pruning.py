"""A narrower copy of a model: the channels, heads and neurons that its activations rank highest.

Muralidharan et al. 2024, Minitron, section 2.2.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

CALIBRATION_BATCHES = 16

# The axes of a parameter's dimensions, by the name of its module; None for one that is kept whole.
# An architecture with other modules cannot be narrowed.
AXES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens": (None, "channels"),
    "input_layernorm": ("channels",),
    "q_proj": ("queries", "channels"),
    "k_proj": ("keys", "channels"),
    "v_proj": ("keys", "channels"),
    "q_norm": ("head",),
    "k_norm": ("head",),
    "o_proj": ("channels", "queries"),
    "post_attention_layernorm": ("channels",),
    "gate_proj": ("neurons", "channels"),
    "up_proj": ("neurons", "channels"),
    "down_proj": ("channels", "neurons"),
    "norm": ("channels",),
    "lm_head": (None, "channels"),
}
NORMS = {kind for kind, axes in AXES.items() if axes == ("channels",)}


def activation_importance(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Scores by the module's name: the mean of |activation| over time, its L2 norm over sequences.

    Of a norm: the channels of its output [C]. Of an o_proj: the heads in its input [H], by the L2
    norm of a head. Of a down_proj: the neurons in its input [F].
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    read: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
        "o_proj": (heads, lambda x, _: x.unflatten(-1, (heads, -1)).norm(dim=-1)),
        "down_proj": (config.intermediate_size, lambda x, _: x),
    }
    read |= dict.fromkeys(NORMS, (config.hidden_size, lambda _, y: y))
    squares, handles = {}, []
    for name, module in model.named_modules():
        if (kind := name.rpartition(".")[2]) in read:
            size, activations = read[kind]
            squares[name] = torch.zeros(size, device=model.device)
            hook: Any = partial(_add_squares, squares[name], activations)
            handles.append(module.register_forward_hook(hook))
    calibrate(model, batches, handles)
    return {name: total.sqrt() for name, total in squares.items()}


@torch.no_grad()
def calibrate(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], handles: Iterable[RemovableHandle]
) -> int:
    """Runs the model on the first batches, in eval mode. Returns the number of their tokens.

    batches: input_ids and position_ids, [B, T]. handles: of the hooks that read its activations,
    which are removed.
    """
    tokens, was_training = 0, model.training
    model.eval()
    try:
        for batch in islice(batches, CALIBRATION_BATCHES):
            inputs = {key: batch[key].to(model.device) for key in ("input_ids", "position_ids")}
            model(**inputs, use_cache=False)
            tokens += inputs["input_ids"].numel()
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return tokens


def _add_squares(
    total: Tensor,
    activations: Callable[[Tensor, Tensor], Tensor],
    module: nn.Module,
    args: tuple[Tensor],
    output: Tensor,
) -> None:
    """Forward hook. args, output: [B, T, …]. total: [size]."""
    states = activations(args[0], output)
    total.add_(states.float().abs().mean(1).square().sum(0))


@torch.no_grad()
def narrow(
    model: PreTrainedModel, width: int, heads: int, importance: dict[str, Tensor]
) -> PreTrainedModel:
    """The copy. Channels are the same in all layers; heads and neurons are chosen by layer."""
    text_config = model.config.get_text_config()
    sizes, group = axis_sizes(text_config), queries_per_key(text_config)
    config = _narrow_config(model.config, width, heads)
    neurons = config.get_text_config().intermediate_size
    student = new_like(model, config)

    norms = [score for name, score in importance.items() if name.rpartition(".")[2] in NORMS]
    channels = _largest(torch.stack(norms).sum(0), width)
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")[0].rpartition(".")
        kept = {"channels": channels}
        if f"{layer}.o_proj" in importance:
            scores = importance[f"{layer}.o_proj"].unflatten(0, (-1, group)).sum(1)
            groups = _largest(scores, heads // group)
            kept["queries"] = _rows_of_blocks(groups, group * sizes["head"])
            kept["keys"] = _rows_of_blocks(groups, sizes["head"])
        elif f"{layer}.down_proj" in importance:
            kept["neurons"] = _largest(importance[f"{layer}.down_proj"], neurons)
        part: Tensor = parameter
        for dim, axis in enumerate(AXES[kind][: parameter.dim()]):
            part = part.index_select(dim, kept[axis]) if axis in kept else part
        if kind in NORMS and name.endswith("weight"):  # RMSNorm's mean is over fewer channels
            part = part * (sizes["channels"] / width) ** 0.5
        student.get_parameter(name).copy_(part)
    return student


def _narrow_config(config: PreTrainedConfig, width: int, heads: int) -> PreTrainedConfig:
    narrowed = deepcopy(config)
    text_config = narrowed.get_text_config()
    sizes, group = axis_sizes(text_config), queries_per_key(text_config)
    neurons = 8 * -(-sizes["neurons"] * width // (8 * sizes["channels"]))  # a multiple of 8
    text_config.hidden_size = width
    text_config.intermediate_size = min(sizes["neurons"], neurons)
    text_config.num_attention_heads = heads
    text_config.num_key_value_heads = heads // group
    text_config.head_dim = sizes["head"]
    return narrowed


def _largest(scores: Tensor, count: int) -> Tensor:
    """The indices of the largest scores, in ascending order."""
    return scores.topk(count).indices.sort().values


def _rows_of_blocks(blocks: Tensor, size: int) -> Tensor:
    """The indices of the rows in these blocks of `size` rows each."""
    return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


def can_be_narrowed(model: PreTrainedModel) -> bool:
    sizes = axis_sizes(model.config.get_text_config())
    for name, parameter in model.named_parameters():
        axes = AXES.get(name.rpartition(".")[0].rpartition(".")[2], ())
        pairs = zip(axes, parameter.shape, strict=False)
        if len(axes) < parameter.dim() or any(n != sizes.get(axis, n) for axis, n in pairs):
            return False
    # Another class may scale the embedding by its width, as Gemma's does.
    return type(model.get_input_embeddings()) is nn.Embedding


def axis_sizes(config: PreTrainedConfig) -> dict[str | None, int]:
    heads = num_heads(config) or 1
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "channels": config.hidden_size,
        "queries": heads * head,
        "keys": heads // queries_per_key(config) * head,
        "head": head,
        "neurons": getattr(config, "intermediate_size", None) or 0,
    }


def num_heads(config: PreTrainedConfig) -> int:
    """Query heads of a layer; 0 for a model without attention."""
    return getattr(config, "num_attention_heads", None) or 0


def queries_per_key(config: PreTrainedConfig) -> int:
    """Query heads that share a key-value head (grouped-query attention)."""
    heads = num_heads(config) or 1
    return heads // (getattr(config, "num_key_value_heads", None) or heads)


def new_like(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the same class, device and dtype, with another config and random weights."""
    with torch.device(model.device):
        new: Any = type(model)(config)
    new.to(model.dtype)
    if model.can_generate():
        new.generation_config = deepcopy(model.generation_config)
    return new
