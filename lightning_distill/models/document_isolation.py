"""Whether a model keeps documents apart that lie in one block one behind the other."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError

TRIED = 4  # tokens of each of two documents


def check_isolates(model: PreTrainedModel, name: str) -> None:
    """Raises ConfigError unless what the model says of a document follows from that one alone.

    Positions that begin at 0 again are how it is told. Attention heeds them; a state that is
    carried from token to token (Mamba's) does not. A model without its weights is only asked
    whether it reads positions.
    """
    reads = "position_ids" in inspect.signature(model.forward).parameters
    if not reads or (model.device.type != "meta" and not _tried(model)):
        raise ConfigError(
            f"{name}: a {type(model).__name__} carries what it has read from one document into the "
            "next. Set data.isolate_documents=false; data=chat, which keeps conversations apart, "
            "needs another model."
        )


@torch.no_grad()
def _tried(model: PreTrainedModel) -> bool:
    """Whether the second of two documents is read alike behind two different first ones."""
    was_training = model.training
    model.eval()
    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(2 * TRIED, device=model.device) % embeddings.num_embeddings
    ids = torch.stack([ids, torch.cat([ids[:TRIED].flip(0), ids[TRIED:]])])
    places = torch.arange(TRIED, device=model.device).repeat(2).expand(2, -1)
    try:
        states = model.base_model(input_ids=ids, position_ids=places, use_cache=False)[0]
    finally:
        model.train(was_training)
    # Attention gives the other document a weight of exactly zero.
    one, other = states[:, TRIED:]
    return bool((one - other).abs().max() <= 8 * torch.finfo(one.dtype).eps * one.abs().max())
