"""The tokenizer: that of a pretrained model, or one that models built from a size share."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lightning_distill.data.splits import sha256
from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.inspection import max_positions
from lightning_distill.storage.artifacts import Store

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
MASK = "<|mask|>"

# What a special token is there for, as a message has it.
USES = {
    "eos_token": "end-of-text token (eos_token), which closes each document",
    "mask_token": "mask token (mask_token), which stands for what is to be guessed",
}


def obtain_tokenizer(
    store: Store,
    given: PreTrainedTokenizerBase | None,
    made_from: dict[str, Any],
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    for_pairs: bool = False,
    needs: Sequence[str] = ("eos_token",),
) -> PreTrainedTokenizerBase:
    """The given one; else one trained on the texts, an artifact of `made_from`.

    special_tokens: of one that is trained, besides the end-of-text token.
    for_pairs: by `train_pair_tokenizer`, which has none.
    needs: which of USES it must have. Raises ConfigError where a given one has not.
    """
    made_from = made_from | {"vocab_size": vocab_size}
    if special_tokens:
        made_from["special_tokens"] = list(special_tokens)

    def make(folder: Path) -> None:
        if for_pairs:
            train_pair_tokenizer(texts(), vocab_size).save_pretrained(folder)
        else:
            train_tokenizer(texts(), vocab_size, special_tokens).save_pretrained(folder)

    if given is None:
        given = pretrained.saved(AutoTokenizer, store.get("tokenizer", made_from, make).folder)
    for name in needs:
        if getattr(given, name) is None:
            raise ConfigError(
                f"The tokenizer of {given.name_or_path} has no {USES[name]}. "
                "Add one to its tokenizer_config.json."
            )
    return given


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Radford et al. 2019): any text round-trips, nothing is unknown.

    The end-of-text token closes each document. No padding token: nothing that is generated is ever
    padded, so the end of a text cannot be mistaken for padding and masked away.
    """
    named = {"mask_token": MASK} if MASK in special_tokens else {}
    tokenizer = _byte_level(documents, vocab_size, [END_OF_TEXT, *special_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        extra_special_tokens=[token for token in special_tokens if token != MASK],
        **named,
    )


def train_pair_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """The same for pairs of texts, which are padded: with a token for that, behind which decoders
    begin too, as Marian's and T5's do. It closes each text by itself."""
    tokenizer = _byte_level(texts, vocab_size, [END_OF_TEXT, PADDING])
    end = (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[end]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING
    )


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that it puts before a text and behind it, as [CLS] and [SEP]."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _byte_level(documents: Iterable[str], vocab_size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for two tokenizers only if they give every text the same ids."""
    if tokenizer.is_fast:
        return sha256(tokenizer.backend_tokenizer.to_str())
    own = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return sha256(json.dumps(own))


def check_reads(
    model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase, length: int
) -> None:
    """Raises ConfigError if the model cannot read the tokens, or so many of them."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.num_embeddings
    if rows < len(tokenizer):
        raise ConfigError(
            f"{name} has {rows} embedding rows, the tokenizer "
            f"{len(tokenizer)} tokens: they do not belong together."
        )
    most = max_positions(model)
    if most and most < length:
        raise ConfigError(
            f"data.sequence_length={length} is longer than the {most} positions "
            "(max_position_embeddings) of the model."
        )
