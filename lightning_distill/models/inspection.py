"""What a model is like: its layers, positions, parameters and bytes."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """The list of its layers, and that list's name in the model; None if there is none.

    Of what writes, those of its text decoder; of an encoder, its own.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "hidden_size"):  # it has stages, which differ
        return None
    count = config.num_hidden_layers
    if config.is_encoder_decoder:  # where that is the encoder's
        names = ("decoder_layers", "num_decoder_layers")
        count = next((getattr(config, name) for name in names if hasattr(config, name)), count)
    # An encoder may call its output matrix a decoder.
    body = set((model.get_decoder() if model.can_generate() else model.base_model).modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in body:
            return name, module
    return None


def max_positions(model: PreTrainedModel) -> int | None:
    """The most tokens that it can read, where its config says so."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def count_parameters(model: PreTrainedModel) -> int:
    """Each weight once, also where output and embedding are tied."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Of the weights as they lie in memory, tied ones once, quantised ones packed."""
    return sum(map(_bytes, model.parameters()))


def _bytes(tensor: Any) -> int:
    # A quantised tensor looks like what it was; torch's protocol gives the parts it is made of.
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return int(tensor.numel() * tensor.element_size())
