"""A student that starts as a part of its teacher: some of its layers, some of its width.

Muralidharan et al. 2024, Minitron. The layers are chosen by their place; then, where the student
is narrower, its channels, heads and neurons by how strongly the layers kept activate them on some
text (section 2.2: the mean over the sequence, the L2 norm over the batch).

Tried on the demo's teacher, 4 layers of 128, whose validation nll is 4.27; before any training,
- layers 1 and 4 give 4.54, 1 and 3 4.56, 1 and 2 4.62, but 2 and 4 (to which `loss.hidden` maps)
  7.77. So `uniform` keeps both ends;
- half the width gives 6.15 with the norms' gains as they were, and 5.31 with gains times
  √(W / W'), as if the channels left out still counted in the mean, as zeros;
- activations of the whole teacher choose no better than those of the layers kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.models.inspection import find_layers

SIZE = ("num_hidden_layers", "hidden_size", "num_attention_heads")
PLACES = ("uniform", "first", "last")
CALIBRATION = 16  # batches that say what of its width a narrower student keeps

# What the dimensions of a parameter run over, by the name of its module; None: all of it is kept.
# Only architectures that have no other modules can be narrowed.
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
NORM = ("channels",)


def prune_teacher(
    teacher: PreTrainedModel, role: Mapping[str, Any], batches: Iterable[dict[str, Tensor]]
) -> PreTrainedModel:
    """A model of the teacher's class, with as many layers, channels and heads as `role` says.

    role: the `student` node: num_hidden_layers, hidden_size, num_attention_heads, and layers:
    `uniform`, `first`, `last`, or a list of the teacher's layers, counted from 1. The rest of the
    config is the teacher's, with the size of its heads; the MLP shrinks with the width, to eights.
    batches: input_ids and position_ids [B, T]; the first are read if the student is narrower.

    Raises ConfigError where that cannot be; a teacher on the meta device is enough to find out.
    """
    if problems := list(_problems(teacher, role)):
        raise ConfigError("; ".join(problems) + ".")
    config, (count, width, heads) = _text(teacher), (role[key] for key in SIZE)
    student = _keep_layers(teacher, _places(role["layers"], count, config.num_hidden_layers))
    if width < config.hidden_size or heads < _heads(config):
        student = _keep_width(student, width, heads, _importance(student, batches))
    return student.train()


def _problems(teacher: PreTrainedModel, role: Mapping[str, Any]) -> Iterator[str]:
    config, name = _text(teacher), type(teacher).__name__
    available, wide, many = config.num_hidden_layers, config.hidden_size, _heads(config)
    count, width, heads = (role[key] for key in SIZE)
    if config.is_encoder_decoder:
        yield (
            f"student.initialize=teacher_layers: a {name} is an encoder and a decoder, and only a "
            "decoder's layers can be chosen; set student.initialize=random"
        )
        return
    if find_layers(teacher) is None:
        yield f"student.initialize=teacher_layers: a {name} has no list of {available} layers"
        return
    if count > available:
        yield f"student.num_hidden_layers={count} is more than the teacher's {available}"
    yield from _problems_of_places(role["layers"], count, available)
    if _can_be_narrowed(teacher):
        shared = _sizes(config)["shared"]
        if width > wide:
            yield f"student.hidden_size={width} is more than the teacher's {wide}"
        if heads > many or heads % shared:
            step = f", each {shared} of which share their keys" if shared > 1 else ""
            yield f"student.num_attention_heads={heads} does not fit the teacher's {many}{step}"
    elif width != wide or (many and heads != many):
        also = f" and student.num_attention_heads={many}" if many else ""
        yield (
            f"student.hidden_size={width} and student.num_attention_heads={heads}: of a {name} "
            f"only layers can be left out; set student.hidden_size={wide}{also}"
        )


def _problems_of_places(layers: Any, count: int, available: int) -> Iterator[str]:
    if layers in PLACES:
        return
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        yield str(unknown_name("student.layers", layers, [*PLACES, "a list"])).rstrip(".")
        return
    found = f"student.layers={list(layers)}"
    if strays := [n for n in layers if n not in range(1, available + 1) or isinstance(n, bool)]:
        yield f"{found}: the teacher has layers 1 to {available}, there is no {strays[0]}"
    elif list(layers) != sorted(set(layers)):
        yield f"{found} must name each layer once, in their order"
    if len(layers) != count:
        yield f"{found} names {len(layers)} layers, student.num_hidden_layers={count}"


def _places(layers: Any, count: int, available: int) -> list[int]:
    """The teacher's layers that are kept, counted from 1; `uniform` has the first and the last."""
    if layers == "first":
        return list(range(1, count + 1))
    if layers == "last":
        return list(range(available - count + 1, available + 1))
    if layers == "uniform":
        step = (available - 1) / max(1, count - 1)
        return [1 + round(i * step) for i in range(count)]
    return list(layers)


def _keep_layers(teacher: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    found = find_layers(teacher)
    assert found, "refused before"
    name, layers = found
    config = deepcopy(teacher.config)
    text = config.get_text_config()
    for key, value in vars(text).items():
        if "layer" in key and isinstance(value, list) and len(value) == len(layers):
            setattr(text, key, [value[n - 1] for n in kept])  # layer_types, for one
    text.num_hidden_layers = len(kept)
    student = _new(teacher, config)
    rest = {k: v for k, v in teacher.state_dict().items() if not k.startswith(f"{name}.")}
    student.load_state_dict(rest, strict=False)
    for place, number in enumerate(kept, 1):
        own = student.get_submodule(f"{name}.{place - 1}")
        try:
            own.load_state_dict(layers[number - 1].state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"student.layers={kept}: the layers of a {type(teacher).__name__} differ, and its "
                f"layer {number} cannot be the student's layer {place}; choose others."
            ) from error
    return student


def _importance(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the channels that each norm puts out, the heads that enter each o_proj and the neurons
    that enter each down_proj, by the module's name."""
    config, found, handles = _text(model), {}, []

    def watch(name: str, size: int, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        total = found[name] = torch.zeros(size, device=model.device)

        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            states = read(args[0], output)
            total.add_(states.float().abs().mean(1).square().sum(0))

        handles.append(model.get_submodule(name).register_forward_hook(hook))

    def by_head(entering: Tensor, _: Tensor) -> Tensor:
        return entering.unflatten(-1, (config.num_attention_heads, -1)).norm(dim=-1)

    for name, _ in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind == "o_proj":
            watch(name, config.num_attention_heads, by_head)
        elif kind == "down_proj":
            watch(name, config.intermediate_size, lambda entering, _: entering)
        elif AXES.get(kind) == NORM:
            watch(name, config.hidden_size, lambda _, output: output)
    model.eval()
    with torch.no_grad():
        for batch in islice(batches, CALIBRATION):
            inputs = {k: batch[k].to(model.device) for k in ("input_ids", "position_ids")}
            model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: total.sqrt() for name, total in found.items()}


@torch.no_grad()
def _keep_width(
    model: PreTrainedModel, width: int, heads: int, scores: dict[str, Tensor]
) -> PreTrainedModel:
    """Channels are the same in all layers; each layer has heads and neurons of its own."""
    config, sizes = deepcopy(model.config), _sizes(_text(model))
    text, shared, head = config.get_text_config(), sizes["shared"], sizes["head"]
    eights = -(-sizes["neurons"] * width // (8 * sizes["channels"]))
    text.hidden_size, text.intermediate_size = width, min(sizes["neurons"], 8 * eights)
    text.num_attention_heads, text.num_key_value_heads = heads, heads // shared
    text.head_dim = head
    student = _new(model, config)

    norms = [score for name, score in scores.items() if AXES.get(name.rpartition(".")[2]) == NORM]
    channels = _best(torch.stack(norms).sum(0), width)
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")[0].rpartition(".")
        kept = {"channels": channels}
        if f"{layer}.o_proj" in scores:
            groups = scores[f"{layer}.o_proj"].unflatten(0, (-1, shared)).sum(1)
            best = _best(groups, heads // shared)
            kept |= {"queries": _rows(best, shared * head), "keys": _rows(best, head)}
        elif f"{layer}.down_proj" in scores:
            kept["neurons"] = _best(scores[f"{layer}.down_proj"], text.intermediate_size)
        part: Tensor = parameter
        for dim, axis in enumerate(AXES[kind][: parameter.dim()]):
            part = part.index_select(dim, kept[axis]) if axis in kept else part
        if AXES[kind] == NORM and name.endswith("weight"):  # its mean is over fewer channels
            part = part * (sizes["channels"] / width) ** 0.5
        student.get_parameter(name).copy_(part)
    return student


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _rows(blocks: Tensor, size: int) -> Tensor:
    """The rows of these blocks of `size` rows each."""
    return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


def _can_be_narrowed(model: PreTrainedModel) -> bool:
    sizes = _sizes(_text(model))
    for name, parameter in model.named_parameters():
        axes = AXES.get(name.rpartition(".")[0].rpartition(".")[2], ())
        found = zip(axes, parameter.shape, strict=False)
        if len(axes) < parameter.dim() or any(n != sizes.get(axis, n) for axis, n in found):
            return False
    # An embedding of a class of its own may be scaled by its width, as Gemma's is.
    return type(model.get_input_embeddings()) is nn.Embedding


def _sizes(config: PreTrainedConfig) -> dict[str | None, int]:
    """Of each axis; and `shared`, the query heads that share one head of keys."""
    heads = _heads(config) or 1
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "channels": config.hidden_size,
        "queries": heads * head,
        "keys": keys * head,
        "head": head,
        "neurons": getattr(config, "intermediate_size", None) or 0,
        "shared": heads // keys,
    }


def _heads(config: PreTrainedConfig) -> int:
    return getattr(config, "num_attention_heads", None) or 0  # a Mamba has none


def _text(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config()


def _new(like: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device(like.device):
        model: Any = type(like)(config)
    model.to(like.dtype)
    if like.can_generate():
        model.generation_config = deepcopy(like.generation_config)
    return model
