"""Whether a model keeps packed documents apart: several documents in one block of tokens."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError

PROBE_TOKENS = 4  # of each of two documents


def check_isolates(model: PreTrainedModel, name: str) -> None:
    """Raises ConfigError where the predictions for a document depend on the one before it.

    Documents are told apart by positions that start at 0 again. transformers masks attention by
    them; a recurrent state (Mamba's) ignores them. On the meta device, the check is only whether
    the model takes positions.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if not takes_positions or (model.device.type != "meta" and not _isolates_probe(model)):
        raise ConfigError(
            f"{name}: a {type(model).__name__} carries its state from one document into the "
            "next. Set data.isolate_documents=false; data=chat, which isolates conversations, "
            "needs another model."
        )


@torch.no_grad()
def _isolates_probe(model: PreTrainedModel) -> bool:
    """Whether a document's hidden states are the same after two different documents."""
    was_training = model.training
    model.eval()
    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(2 * PROBE_TOKENS, device=model.device) % embeddings.num_embeddings
    ids = torch.stack([ids, torch.cat([ids[:PROBE_TOKENS].flip(0), ids[PROBE_TOKENS:]])])
    positions = torch.arange(PROBE_TOKENS, device=model.device).repeat(2).expand(2, -1)
    try:
        states = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)[0]
    finally:
        model.train(was_training)
    # Masked attention weights are exactly zero; what remains is rounding.
    first, second = states[:, PROBE_TOKENS:]
    tolerance = 8 * torch.finfo(first.dtype).eps * first.abs().max()
    return bool((first - second).abs().max() <= tolerance)
