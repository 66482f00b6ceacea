"""The task of a text classifier: which of a few labels a text has.

rows → split by hash → tokenizer (trained on the train split) → tokens and labels.
"""

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distill.data.hashes import sha256
from lightning_distill.data.labelled_texts import LabelledTexts
from lightning_distill.data.loaders import collate_trimmed
from lightning_distill.data.splits import SPLITS, SplitItems
from lightning_distill.data.tasks.text import TextTask
from lightning_distill.data.tokenizer import (
    check_reads,
    obtain_tokenizer,
    padding_id,
    special_tokens_around,
    tokenizer_hash,
)
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import ClassQuality
from lightning_distill.models.classifier import adapt_head
from lightning_distill.models.probes import check_padding
from lightning_distill.models.sizes import Size, encoder
from lightning_distill.storage.artifacts import Store

VERSION = 1  # raise it when this file starts to give other tokens for the same rows
SAMPLE_CHARACTERS = 400  # of a text


class Classification(TextTask):
    """Texts with one label each, from one source; duplicate texts count once.

    sequence_length: tokens of a text at most; a longer one is truncated.
    Other settings: see `TextTask`.
    """

    auto_class = AutoModelForSequenceClassification
    model_kind, hub_task = "text classifier", "text-classification"

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        inputs = {
            **self.sources.fingerprint(),
            "edition": VERSION,
        }
        self.tokenizer = obtain_tokenizer(
            store,
            tokenizer,
            inputs,
            lambda: (text for text, _ in self._splits["train"].items),
            self.vocab_size,
            required=(),
        )
        self.around = special_tokens_around(self.tokenizer)
        if (least := sum(map(len, self.around)) + 1) > self.sequence_length:
            raise ConfigError(
                f"data.sequence_length={self.sequence_length} must be {least} or more, for the "
                "special tokens around a text."
            )
        inputs["tokenizer"] = tokenizer_hash(self.tokenizer)
        self._obtain_tokens(store, inputs)
        self._tokens = load_file(self.artifact.folder / "tokens.safetensors")
        self.labels: list[str] = json.loads((self.artifact.folder / "labels.json").read_text())

    def examples(self, split: str) -> LabelledTexts:
        return LabelledTexts(
            self._tokens[split],
            self._tokens[f"{split}_ends"],
            self._tokens[f"{split}_labels"],
            self.sequence_length,
            self.around,
            padding_id(self.tokenizer),
        )

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def example_settings(self) -> dict[str, Any]:
        return {"data.sequence_length": self.sequence_length}

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self.examples(s)):,} {s}" for s in SPLITS)
        lengths = {s: self._tokens[f"{s}_ends"].diff(prepend=torch.zeros(1).long()) for s in SPLITS}
        room = self.sequence_length - sum(map(len, self.around))
        cut = ", ".join(f"{int((x > room).sum()):,} {s}" for s, x in lengths.items())
        return (
            f"texts: {sizes}; {self.num_classes} labels; vocabulary {len(self.tokenizer):,}; "
            f"{lengths['train'].float().mean():.0f} tokens a text; longer than "
            f"data.sequence_length, and cut there: {cut}; {self.artifact.key}"
        )

    def check_labels(self) -> str:
        counts = Counter(self._tokens["train_labels"].tolist())
        label, count = counts.most_common(1)[0]
        share = count / len(self._tokens["train_labels"])
        return (
            f"{self.num_classes} labels; {self.labels[label]!r}, {share:.1%} of train, is the most"
        )

    def new_model(self, size: Size) -> PreTrainedModel:
        id2label = dict(enumerate(self.labels))
        label2id = {label: i for i, label in id2label.items()}
        kind = ModernBertForSequenceClassification
        return encoder(kind, size, self.tokenizer, id2label=id2label, label2id=label2id)

    def adapt_model(self, model: PreTrainedModel, name: str, is_trained: bool) -> None:
        adapt_head(model, name, self.labels, is_trained)
        config: Any = model.config
        if getattr(config, "pad_token_id", None) is None:  # a decoder finds the last token by it
            config.pad_token_id = padding_id(self.tokenizer)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        check_reads(model, name, self.tokenizer, self.sequence_length)
        if model.config.is_encoder_decoder and self.tokenizer.eos_token_id not in self.around[1]:
            raise ConfigError(
                f"{name}: a {type(model).__name__} classifies a text by its end-of-text token, "
                "which its tokenizer does not add."
            )
        check_padding(model, name, self.examples("train"))

    def quality_metric(self) -> ClassQuality:
        return ClassQuality(self.num_classes)

    def learned_example(self, index: int) -> str:
        example = self.examples("train")[index]
        ids = example["input_ids"][example["attention_mask"].bool()]
        text = str(self.tokenizer.decode(ids))
        return f"⟦{text[:SAMPLE_CHARACTERS]}⟧ {self.labels[int(example['labels'])]}"

    def sample_prompts(self) -> list[str]:
        prompts = []
        for index in self.sample_indices:
            example = self.examples("test")[index]
            ids = example["input_ids"][example["attention_mask"].bool()]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            label = self.labels[int(example["labels"])]
            prompts.append(f"[{label}] {text[:SAMPLE_CHARACTERS]}")
        return prompts

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The most probable label, with its probability."""
        batch = self.collate([self.examples("test")[self.sample_indices[number]]])
        inputs = {k: batch[k].to(model.device) for k in ("input_ids", "attention_mask")}
        p: Tensor = model.eval()(**inputs).logits[0].float().softmax(-1)
        return f"{self.labels[int(p.argmax())]} {float(p.max()):.0%}"

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return collate_trimmed(examples)

    @cached_property
    def _splits(self) -> dict[str, SplitItems[tuple[str, str]]]:
        """(text, label) of each split."""
        splits = self.sources.split(
            lambda source: ((sha256(text), (text, label)) for text, label in source.rows()), "texts"
        )
        if len(labels := _sorted_labels(splits)) < 2:
            raise ConfigError(
                f"data.label_column: all texts have the label {labels[0]!r}; a classifier needs "
                "two."
            )
        if missing := sorted(set(labels) - {label for _, label in splits["train"].items}):
            raise ConfigError(
                f"data.label_column: {missing[0]!r} is on held-out texts alone, so that it cannot "
                "be learned. Bring more texts of it, or leave it out."
            )
        return splits

    def _make_tokens(self, folder: Path) -> None:
        labels = _sorted_labels(self._splits)
        tensors: dict[str, Tensor] = {}
        for split, (rows, _) in self._splits.items():
            ids: list[int] = []
            ends: list[int] = []
            for text, _ in rows:
                ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                ends.append(len(ids))
            tensors[split] = torch.tensor(ids, dtype=torch.int32)
            tensors[f"{split}_ends"] = torch.tensor(ends)
            tensors[f"{split}_labels"] = torch.tensor([labels.index(label) for _, label in rows])
        save_file(tensors, folder / "tokens.safetensors")
        self._save_parts(self._splits, folder)
        (folder / "labels.json").write_text(json.dumps(labels))


def _sorted_labels(splits: dict[str, SplitItems[tuple[str, str]]]) -> list[str]:
    """Numerically sorted where all labels are numbers, else alphabetically."""
    labels = {label for rows, _ in splits.values() for _, label in rows}
    try:
        return sorted(sorted(labels), key=float)
    except ValueError:
        return sorted(labels)
