"""Embedding rows for tokens that a model's own tokenizer lacks."""

import logging
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.models.inspection import embedding_rows, is_outline, vocabulary_size

log = logging.getLogger(__name__)


def add_rows(
    model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[str]
) -> None:
    """Extends the embedding and the output head to the tokenizer's ids, in place.

    new_tokens: the only ones that may lack a row; of other tokens none is made up. A padded
    embedding has rows for them already. New rows are drawn around the mean of the others (Hewitt
    2021, "Initializing new word embeddings for pretrained language models").
    """
    rows, needed = embedding_rows(model), vocabulary_size(tokenizer)
    if rows is None or rows >= needed:
        return
    vocabulary = tokenizer.get_vocab()
    without_row = {token for token, id in vocabulary.items() if id >= rows}
    if not without_row <= set(new_tokens):
        return
    outline = is_outline(model)  # without weights, which have no mean
    model.resize_token_embeddings(needed, mean_resizing=not outline)
    if not outline:
        log.info(
            "%s: its embedding grows from %s to %s rows, for %s",
            *(name, f"{rows:,}", f"{needed:,}"),
            shown(sorted(without_row, key=vocabulary.__getitem__)),
        )


def shown(tokens: Sequence[str], limit: int = 4) -> str:
    """The first of the tokens, for a message."""
    more = f" and {len(tokens) - limit} more" if len(tokens) > limit else ""
    return ", ".join(tokens[:limit]) + more


def embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """The parameters of the embedding and the output head; tied ones are there once."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    return list({id(p): p for one in modules if one is not None for p in one.parameters()}.values())
