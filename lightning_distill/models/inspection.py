"""Properties of a model and a tokenizer: layers, positions, parameters, bytes, vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """The list of the model's layers and its name in the model; None if there is none.

    Of a generative model, the layers of its text decoder; of an encoder, its own.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "hidden_size"):  # stages of different widths
        return None
    count = config.num_hidden_layers
    if config.is_encoder_decoder:  # num_hidden_layers is the encoder's
        names = ("decoder_layers", "num_decoder_layers")
        count = next((getattr(config, name) for name in names if hasattr(config, name)), count)
    # An encoder may call its output matrix a decoder.
    body = set((model.get_decoder() if model.can_generate() else model.base_model).modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in body:
            return name, module
    return None


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model takes; None where its config names no limit."""
    rows = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    return rows - position_offset(model) if rows > 0 else None  # XLNet's -1 is no limit


def position_offset(model: PreTrainedModel) -> int:
    """The position id of a first token: padding_idx + 1 for RoBERTa and related models."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def embedding_rows(model: PreTrainedModel) -> int | None:
    """The number of ids that the model reads; None where it takes any, as CANINE does."""
    try:
        embeddings: Any = model.get_input_embeddings()
    except NotImplementedError:
        return None
    weight = getattr(embeddings, "weight", None)  # Perceiver returns its latents
    return None if weight is None else len(weight)


def num_outputs(model: Any) -> int:
    """The rows of the output: of a padded embedding more than the vocabulary has; of a classifier
    the number of its classes."""
    head = model.get_output_embeddings()
    return int(model.config.num_labels if head is None else len(head.weight))


def predicts_next_token(model: Any) -> bool:
    """Whether the prediction at t is of the token at t + 1, as of a decoder, and of no other."""
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def decoder_start(model: PreTrainedModel) -> int | None:
    """The token that an encoder-decoder's decoder begins with, as in transformers' `generate`."""
    configs = model.config, getattr(model, "generation_config", None)
    names = "decoder_start_token_id", "bos_token_id"
    ids = (getattr(config, name, None) for name in names for config in configs)
    return next((i for i in ids if i is not None), None)


def stops_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
    """The tokens that end a text generated with the model.

    tokenizer: its end-of-text token is the last of them.
    """
    generation: Any = model.generation_config
    eos = generation.eos_token_id
    ids = [*eos] if isinstance(eos, list) else [eos]
    ids += [tokenizer.eos_token_id] if tokenizer else []
    return [*dict.fromkeys(i for i in ids if i is not None)]


def set_special_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], padding: int
) -> None:
    """Ends texts generated with the model with `stops`, or with what ended them before.

    config.json names the first of `stops` alone. Some programs read it, others
    generation_config.json. What an encoder-decoder's texts begin with stays.
    """
    generation: Any = model.generation_config
    config: Any = model.config
    generation.eos_token_id = [*dict.fromkeys([*stops, *stops_of(model)])]
    config.eos_token_id = config.get_text_config().eos_token_id = stops[0]
    if not config.is_encoder_decoder:
        generation.pad_token_id = padding
        if (bos := tokenizer.bos_token_id) is not None:
            generation.bos_token_id = config.get_text_config().bos_token_id = bos


def is_outline(model: PreTrainedModel) -> bool:
    """Whether it was built without weights, on the meta device."""
    return any(p.is_meta for p in model.parameters())


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id: the ids of a vocabulary may have gaps."""
    return _largest_id(tokenizer, len(tokenizer)) + 1


@lru_cache(maxsize=8)
def _largest_id(tokenizer: PreTrainedTokenizerBase, size: int) -> int:
    """size: of the tokenizer, to which tokens may be added. Listing 128 k tokens takes 0.1 s."""
    return max(tokenizer.get_vocab().values(), default=-1)


def count_parameters(model: PreTrainedModel) -> int:
    """Tied weights count once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights in memory: tied ones once, quantized ones packed."""
    return sum(map(_bytes, model.parameters()))


def _bytes(tensor: Any) -> int:
    # A quantized tensor reports the original dtype; PyTorch's protocol gives its parts.
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return int(tensor.numel() * tensor.element_size())
