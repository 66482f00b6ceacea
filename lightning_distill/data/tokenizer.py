"""The tokenizer: a pretrained model's, or one trained on the source."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lightning_distill.data.hashes import sha256
from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.inspection import embedding_rows, max_positions, vocabulary_size
from lightning_distill.storage.artifacts import Store

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
MASK = "<|mask|>"

PURPOSES = {  # of special tokens, for error messages
    "eos_token": "end-of-text token (eos_token), which closes each document",
    "mask_token": "mask token (mask_token), which replaces the tokens to be predicted",
}


def obtain_tokenizer(
    store: Store,
    pretrained_tokenizer: PreTrainedTokenizerBase | None,
    made_from: dict[str, Any],
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    for_pairs: bool = False,
    required: Sequence[str] = ("eos_token",),
) -> PreTrainedTokenizerBase:
    """The pretrained tokenizer, or else one trained on the texts: an artifact of `made_from`.

    special_tokens: of a trained one, besides the end-of-text token.
    for_pairs: train it with `train_pair_tokenizer`, which takes no special tokens.
    required: keys of PURPOSES. Raises ConfigError where the tokenizer lacks one.
    """
    made_from = made_from | {"vocab_size": vocab_size}
    if special_tokens:
        made_from["special_tokens"] = list(special_tokens)

    def make(folder: Path) -> None:
        log.info("training a tokenizer of %s tokens", f"{vocab_size:,}")
        if for_pairs:
            train_pair_tokenizer(texts(), vocab_size).save_pretrained(folder)
        else:
            train_tokenizer(texts(), vocab_size, special_tokens).save_pretrained(folder)

    tokenizer = pretrained_tokenizer
    if tokenizer is None:
        tokenizer = pretrained.load_saved(
            AutoTokenizer, store.get("tokenizer", made_from, make).folder
        )
    for name in required:
        if getattr(tokenizer, name) is None:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path} has no {PURPOSES[name]}. "
                "Add one to its tokenizer_config.json."
            )
    return tokenizer


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Radford et al. 2019): any text round-trips, nothing is unknown.

    The end-of-text token closes each document. There is no padding token, since the end of a text
    must not be mistaken for padding and masked.
    """
    mask = {"mask_token": MASK} if MASK in special_tokens else {}
    tokenizer = _train_bpe(documents, vocab_size, [END_OF_TEXT, *special_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        extra_special_tokens=[token for token in special_tokens if token != MASK],
        **mask,
    )


def train_pair_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """The same for pairs: it closes each text itself, and has a padding token, with which decoders
    begin too, as Marian's and T5's do."""
    tokenizer = _train_bpe(texts, vocab_size, [END_OF_TEXT, PADDING])
    end = (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[end]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING
    )


def _train_bpe(documents: Iterable[str], vocab_size: int, special: list[str]) -> Tokenizer:
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


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that it adds before and after a text, such as [CLS] and [SEP]."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    for start in range(len(ids) - len(plain) + 1):
        if ids[start : start + len(plain)] == plain:
            return ids[:start], ids[start + len(plain) :]
    return [], []


def marked_text(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, learned: Tensor, limit: int = 400
) -> str:
    """The tokens as text, in ⟦ ⟧ where they are not learned; of each such run the last characters.

    ids, learned: [T]; learned is a mask. What follows the last learned token is left out. limit: of
    the characters of all.
    """
    runs: list[str] = []
    stop = int(learned.nonzero().max()) + 1 if learned.any() else len(ids)
    starts = [0, *(learned[1:stop] != learned[: stop - 1]).nonzero()[:, 0].add(1).tolist(), stop]
    for start, end in pairwise(starts):
        text = str(tokenizer.decode(ids[start:end]))
        short = f"…{text[-limit // 4 :]}" if len(text) > limit // 4 else text
        runs.append(text if learned[start] else f"⟦{short}⟧")
    whole = "".join(runs)
    return whole if len(whole) <= limit else f"{whole[:limit]}…"


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of what is not in the vocabulary; None where all text is."""
    name = tokenizer.unk_token
    if name is None and tokenizer.is_fast:  # which may know one that its config does not name
        name = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return None if name is None else tokenizer.get_vocab().get(str(name))


def warn_of_unknown(tokenizer: PreTrainedTokenizerBase, splits: dict[str, Tensor]) -> None:
    """Warns where learned tokens of a split [N] are unknown, which a student would then write."""
    unknown = unknown_id(tokenizer)
    if unknown is None or unknown == tokenizer.eos_token_id:
        return
    for split, tokens in splits.items():
        if count := int((tokens == unknown).sum()):
            log.warning(
                "data: %s of %s learned tokens of the %s split are %s: the tokenizer does not know "
                "what the text holds",
                *(f"{count:,}", f"{len(tokens):,}", split, tokenizer.decode([unknown])),
            )


def bos_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token, where the tokenizer adds one before a text; else nothing."""
    before, _ = special_tokens_around(tokenizer)
    return before if before == [tokenizer.bos_token_id] else []


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, else the end-of-text token, else 0; `attention_mask` masks it."""
    ids = tokenizer.pad_token_id, tokenizer.eos_token_id
    return int(next((i for i in ids if i is not None), 0))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal only for tokenizers that give every text the same ids and have equal special tokens."""
    if tokenizer.is_fast:
        ids = tokenizer.backend_tokenizer.to_str()
    else:
        ids = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256(json.dumps([ids, sorted(special.items())]))


def check_reads(
    model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase, length: int
) -> None:
    """Raises ConfigError if the model has too few embedding rows or positions."""
    rows = embedding_rows(model)
    if rows is not None and rows < vocabulary_size(tokenizer):
        raise ConfigError(
            f"{name} has {rows} embedding rows, the tokenizer "
            f"{vocabulary_size(tokenizer)} ids: they do not match."
        )
    positions = max_positions(model)
    if positions and positions < length:
        raise ConfigError(
            f"data.sequence_length={length} is longer than the {positions} positions "
            "(max_position_embeddings) of the model."
        )
