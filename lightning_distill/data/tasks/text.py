"""What the tasks on text share, and those on running text.

Running text: documents → split by hash → tokenizer (trained on the train split) → tokens, in a
file.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.mixture import load_mixture, save_parts
from lightning_distill.data.sources.base import documents
from lightning_distill.data.splits import SPLITS, Held, SplitSources
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.token_files import map_tokens, split_on_disk, write_tokens
from lightning_distill.data.tokenizer import (
    check_reads,
    obtain_tokenizer,
    tokenizer_hash,
    warn_of_unknown,
)
from lightning_distill.storage.artifacts import Store

CHECKED_TOKENS = 10**7  # of a split, for unknown ones
VERSION = 1  # raise it when this file starts to give other tokens for the same text


class TextTask(DistillationData):
    """Texts from one source, as examples of at most `sequence_length` tokens.

    source, held_out, mixture: see `SplitSources`, which takes the remaining settings.
    vocab_size: of a tokenizer trained here; a pretrained model brings its own.
    """

    def __init__(
        self,
        source: Callable[..., Any],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        num_workers: int = 0,
        held_out: Held = None,
        mixture: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.sources = SplitSources(source, settings, held_out, mixture)
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size

    def _obtain_tokens(self, store: Store, inputs: dict[str, Any]) -> None:
        """Sets the artifact of the tokens, made of `inputs`, and the sources of its items."""
        self.artifact = store.get("tokens", inputs, self._make_tokens)
        self.mixture = load_mixture(self.sources, self.artifact.folder)

    def _make_tokens(self, folder: Path) -> None:
        """Writes the artifact's files, `_save_parts` included."""
        raise NotImplementedError

    def _save_parts(self, splits: Mapping[str, Any], folder: Path) -> None:
        """splits: of each, `parts`, the index of each item's source."""
        if self.sources.is_mixture:
            save_parts({split: items.parts for split, items in splits.items()}, folder)


class BlockTask(TextTask):
    """Blocks of tokens from running text."""

    required_tokens: ClassVar[tuple[str, ...]] = ("eos_token",)  # that the tokenizer must have
    special_tokens: ClassVar[tuple[str, ...]] = ()  # that a tokenizer trained here has besides
    _folder = Path(tempfile.gettempdir())  # for the documents while they are tokenized

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._folder = store.root / "tokens"
        tokenizer_inputs, token_inputs = self._made_from()
        self.tokenizer = obtain_tokenizer(
            store,
            tokenizer,
            tokenizer_inputs,
            self._tokenizer_texts,
            self.vocab_size,
            self.special_tokens,
            required=self.required_tokens,
        )
        token_inputs["tokenizer"] = tokenizer_hash(self.tokenizer)
        token_inputs |= {"before": self.before} if self.before else {}
        self._obtain_tokens(store, token_inputs)
        self.__dict__.pop("_documents", None)  # closes the temporary file of documents
        self._tokens = map_tokens(self.artifact.folder / "tokens.safetensors")
        self._bytes = json.loads((self.artifact.folder / "bytes.json").read_text())
        first = {s: self._tokens[s][:CHECKED_TOKENS] for s in SPLITS if s in self._tokens}
        warn_of_unknown(self.tokenizer, first)

    @property
    def before(self) -> list[int]:
        """The tokens that begin each document."""
        return []

    @property
    def separator(self) -> list[int]:
        """The tokens that close each document."""
        return [int(self.tokenizer.eos_token_id)]

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        check_reads(model, name, self.tokenizer, self.sequence_length)

    def bytes_per_token(self, split: str) -> float:
        split = split if split in self._tokens else "validation"  # of a stream's train split
        predicted = len(self._tokens[split])
        for token in self.before:
            predicted -= int((self._tokens[split] == token).sum())
        return self._bytes[split] / predicted

    def describe(self) -> str:
        return (
            f"tokens: {self._split_sizes()}; vocabulary {len(self.tokenizer):,}; "
            f"{self.bytes_per_token('train'):.2f} bytes a token; {self.artifact.key}"
        )

    def _split_sizes(self) -> str:
        return ", ".join(f"{len(self._tokens[s]):,} {s}" for s in SPLITS if s in self._tokens)

    def _made_from(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What determines the tokenizer, and what determines the tokens besides it."""
        inputs = {**self.sources.fingerprint(), "edition": VERSION}
        return dict(inputs), inputs

    @cached_property
    def _documents(self) -> Mapping[str, Any]:
        return self._split_documents()

    def _split_documents(self) -> Mapping[str, Any]:
        """The documents of each split, in a temporary file."""
        what = "documents (a .txt is cut every 1,500 to 3,000 characters)"
        return split_on_disk(self.sources, documents, self._folder, what)

    def _tokenizer_texts(self) -> Iterable[str]:
        return self._documents["train"]

    def _make_tokens(self, folder: Path) -> None:
        splits = {split: self._documents[split] for split in SPLITS if split in self._documents}
        sizes = write_tokens(splits, self.tokenizer, self.before, self.separator, folder)
        (folder / "bytes.json").write_text(json.dumps(sizes))
        self._save_parts(splits, folder)
