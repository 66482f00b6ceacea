"""The task of a text classifier: which of a few labels a text has.

rows → split by hash → tokenizer (trained on the train split) → tokens and labels.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distill.data.splits import SPLITS, sha256, split_by_hash
from lightning_distill.data.tasks.base import DistillationData, trimmed
from lightning_distill.data.tokenizer import check_reads, frame, obtain_tokenizer, tokenizer_hash
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import ClassQuality
from lightning_distill.models.classifier import adapt_head
from lightning_distill.models.sizes import Size, encoder
from lightning_distill.storage.artifacts import Store

EDITION = 1  # raise it when this file starts to give other tokens for the same rows
SHOWN = 400  # characters of a text


class Source(Protocol):
    """What a file of this package offers: texts with labels, and what changes when they do."""

    def fingerprint(self) -> str: ...

    def examples(self) -> Iterator[tuple[str, str]]: ...


class Classification(DistillationData):
    """Texts with a label each, from one source. A text that comes twice counts once.

    source: called with the remaining settings; the ones that only it needs.
    sequence_length: tokens that are read of a text at most; a longer one is cut.
    vocab_size: of the tokenizer that is trained here, where no pretrained model brings its own.
    held_out: one text in so many is for validation, and one for the test.
    """

    auto_class = AutoModelForSequenceClassification
    model_kind, hub_task = "text classifier", "text-classification"

    def __init__(
        self,
        source: Callable[..., Source],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        held_out: int,
        num_workers: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.source = source(**settings)
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.held_out = held_out

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        made_from = {
            "source": self.source.fingerprint(),
            "data.held_out": self.held_out,
            "edition": EDITION,
        }
        texts = lambda: (text for text, _ in self._splits["train"])  # noqa: E731
        self.tokenizer = obtain_tokenizer(
            store, tokenizer, made_from, texts, self.vocab_size, needs=()
        )
        self.frame = frame(self.tokenizer)
        if (least := sum(map(len, self.frame)) + 1) > self.sequence_length:
            found = f"data.sequence_length={self.sequence_length}"
            raise ConfigError(f"{found} must be {least} or more, for the tokens around a text.")
        made_from["tokenizer"] = tokenizer_hash(self.tokenizer)
        self.artifact = store.get("tokens", made_from, self._make_tokens)
        self._tokens = load_file(self.artifact.folder / "tokens.safetensors")
        self.labels: list[str] = json.loads((self.artifact.folder / "labels.json").read_text())

    def examples(self, split: str) -> "Texts":
        return Texts(
            self._tokens[split],
            self._tokens[f"{split}_ends"],
            self._tokens[f"{split}_labels"],
            self.sequence_length,
            self.frame,
            self.filler,
        )

    @property
    def filler(self) -> int:
        """What fills a text up; attention_mask says where it does."""
        ids = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(next((i for i in ids if i is not None), 0))

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def example_settings(self) -> dict[str, Any]:
        return {"data.sequence_length": self.sequence_length}

    def new_model(self, size: Size) -> PreTrainedModel:
        names = dict(enumerate(self.labels))
        numbers = {name: i for i, name in names.items()}
        kind = ModernBertForSequenceClassification
        return encoder(kind, size, self.tokenizer, id2label=names, label2id=numbers)

    def adapt_model(self, model: PreTrainedModel, name: str, trains: bool) -> None:
        adapt_head(model, name, self.labels, trains)
        config: Any = model.config
        if getattr(config, "pad_token_id", None) is None:  # by which a decoder tells the last token
            config.pad_token_id = self.filler

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        check_reads(model, name, self.tokenizer, self.sequence_length)

    def quality_metric(self) -> ClassQuality:
        return ClassQuality(self.num_classes)

    def sample_prompts(self) -> list[str]:
        found = []
        for number in self.sample_indices:
            example = self.examples("test")[number]
            ids = example["input_ids"][example["attention_mask"].bool()]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            found.append(f"[{self.labels[int(example['labels'])]}] {text[:SHOWN]}")
        return found

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The most probable label, and how sure the model is."""
        batch = trimmed([self.examples("test")[self.sample_indices[number]]])
        given = {k: batch[k].to(model.device) for k in ("input_ids", "attention_mask")}
        p: Tensor = model.eval()(**given).logits[0].float().softmax(-1)
        return f"{self.labels[int(p.argmax())]} {float(p.max()):.0%}"

    def check_labels(self) -> str:
        counts = Counter(self._tokens["train_labels"].tolist())
        most, count = counts.most_common(1)[0]
        share = count / len(self._tokens["train_labels"])
        return (
            f"{self.num_classes} labels; {self.labels[most]!r}, {share:.1%} of train, is the most"
        )

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self.examples(s)):,} {s}" for s in SPLITS)
        lengths = self._tokens["train_ends"].diff(prepend=torch.zeros(1, dtype=torch.long))
        cut = (lengths + sum(map(len, self.frame)) > self.sequence_length).float().mean()
        return (
            f"texts: {sizes}; {self.num_classes} labels; vocabulary {len(self.tokenizer):,}; "
            f"{lengths.float().mean():.0f} tokens a text, {cut:.0%} of them cut; "
            f"{self.artifact.key}"
        )

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return trimmed(examples)

    @cached_property
    def _splits(self) -> dict[str, list[tuple[str, str]]]:
        """The texts of each split, with their labels."""
        hashed = ((sha256(text), (text, label)) for text, label in self.source.examples())
        splits = split_by_hash(hashed, "texts", self.held_out)
        if len(names := _names(splits)) < 2:
            raise ConfigError(
                f"data.label_column: all texts have the label {names[0]!r}; a classifier needs two."
            )
        if lost := sorted(set(names) - {label for _, label in splits["train"]}):
            raise ConfigError(
                f"data.label_column: {lost[0]!r} is on held-out texts alone, so that it cannot be "
                "learned. Bring more texts of it, or leave it out."
            )
        return splits

    def _make_tokens(self, folder: Path) -> None:
        names = _names(self._splits)
        tensors: dict[str, Tensor] = {}
        for split, examples in self._splits.items():
            ids: list[int] = []
            ends: list[int] = []
            for text, _ in examples:
                ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                ends.append(len(ids))
            tensors[split] = torch.tensor(ids, dtype=torch.int32)
            tensors[f"{split}_ends"] = torch.tensor(ends)
            tensors[f"{split}_labels"] = torch.tensor([names.index(label) for _, label in examples])
        save_file(tensors, folder / "tokens.safetensors")
        (folder / "labels.json").write_text(json.dumps(names))


class Texts(Dataset[dict[str, Tensor]]):
    """A split: each text filled up to T tokens, or cut to as many.

    tokens: [S] those of all texts, one behind the other. ends: [N] where each ends. labels: [N].
    frame: the special tokens before and behind each.
    """

    positions = 1

    def __init__(
        self,
        tokens: Tensor,
        ends: Tensor,
        labels: Tensor,
        sequence_length: int,
        frame: tuple[list[int], list[int]],
        filler: int,
    ) -> None:
        self.tokens, self.ends, self.labels = tokens, ends, labels
        self.sequence_length, self.frame, self.filler = sequence_length, frame, filler

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and attention_mask [T], the label, and the text's number."""
        before, behind = self.frame
        start = int(self.ends[index - 1]) if index else 0
        room = self.sequence_length - len(before) - len(behind)
        own = self.tokens[start : min(int(self.ends[index]), start + room)].tolist()
        ids = [*before, *own, *behind]
        filled = self.sequence_length - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self.filler] * filled),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * filled),
            "labels": self.labels[index],
            "block": torch.tensor(index),
        }


def _names(splits: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The labels in their order: of numbers, if all are numbers."""
    names = {label for examples in splits.values() for _, label in examples}
    try:
        return sorted(sorted(names), key=float)
    except ValueError:
        return sorted(names)
