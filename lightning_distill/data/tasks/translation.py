"""The task of a translator: an encoder reads a text, a decoder writes it in another language.

pairs → split by hash → one tokenizer for both sides (trained on the train split) → tokens.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.hashes import sha256
from lightning_distill.data.loaders import collate_trimmed
from lightning_distill.data.sentence_pairs import SentencePairs, concatenate, tokenize_pairs
from lightning_distill.data.sources.base import Pair
from lightning_distill.data.splits import SPLITS, SplitItems
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.tasks.text import TextTask
from lightning_distill.data.tokenizer import (
    check_reads,
    obtain_tokenizer,
    padding_id,
    tokenizer_hash,
)
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import Quality
from lightning_distill.models.inspection import decoder_start
from lightning_distill.models.probes import check_causal, check_generates, check_padding
from lightning_distill.models.sizes import Size, encoder_decoder
from lightning_distill.progress import progress
from lightning_distill.storage.artifacts import Store

VERSION = 1  # raise it when this file starts to give other tokens for the same pairs
SCORED_PAIRS = 500  # the first test pairs, on which BLEU and chrF are computed


class Translation(TextTask):
    """Pairs from one source.

    sequence_length: tokens of each side at most, the end token included; longer pairs are dropped.
    Other settings: see `TextTask`.
    """

    auto_class = AutoModelForSeq2SeqLM
    model_kind, hub_task = "sequence-to-sequence model", "translation"
    is_generative = True
    continues_prompt = False
    generation_batch = 64

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        inputs: dict[str, Any] = {**self.sources.fingerprint(), "edition": VERSION}
        self.tokenizer = obtain_tokenizer(
            store, tokenizer, inputs, self._train_texts, self.vocab_size, for_pairs=True
        )
        inputs["tokenizer"] = tokenizer_hash(self.tokenizer)
        inputs["data.sequence_length"] = self.sequence_length
        self._obtain_tokens(store, inputs)
        self._tokens = load_file(self.artifact.folder / "pairs.safetensors")
        self._counts = json.loads((self.artifact.folder / "pairs.json").read_text())
        for split in SPLITS:
            if not len(self.examples(split)):
                raise ConfigError(
                    f"data.sequence_length={self.sequence_length} is too short for all "
                    f"{self._counts[split]['too_long']} pairs of the {split} split; set a longer "
                    "one, or bring more pairs."
                )

    def examples(self, split: str) -> SentencePairs:
        sources, targets = (
            (self._tokens[f"{split}_{side}"], self._tokens[f"{split}_{side}_begin"])
            for side in ("sources", "targets")
        )
        return self._pairs_of(sources, targets)

    @property
    def example_settings(self) -> dict[str, Any]:
        return {"data.sequence_length": self.sequence_length}

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self.examples(s)):,} {s}" for s in SPLITS)
        dropped = [(counts["too_long"], split) for split, counts in self._counts.items()]
        longer = ", ".join(f"{count:,} {split}" for count, split in dropped if count)
        longer = f"; left out, longer than data.sequence_length: {longer}" if longer else ""
        return f"pairs: {sizes}{longer}; vocabulary {len(self.tokenizer):,}; {self.artifact.key}"

    def check_labels(self) -> str:
        counts = ", ".join(f"{len(self._tokens[f'{s}_targets']):,} of {s}" for s in SPLITS)
        return f"the translations' tokens, {counts}"

    def new_model(self, size: Size) -> PreTrainedModel:
        return encoder_decoder(size, self.tokenizer, self.sequence_length)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        config = model.config
        if not config.is_encoder_decoder:
            raise ConfigError(
                f"{name}, a {type(model).__name__}, is not an encoder-decoder, which translation "
                "needs: a Marian, T5 or BART model, for one."
            )
        if decoder_start(model) is None:
            raise ConfigError(f"{name}: its config.json has no decoder_start_token_id.")
        check_reads(model, name, self.tokenizer, self.sequence_length)
        check_causal(model, name)
        check_padding(model, name, self.examples("train"))
        check_generates(model, name)

    def quality_metric(self) -> Quality:
        return Quality(self._counts["test"]["bytes"] / len(self._tokens["test_targets"]))

    def learned_example(self, index: int) -> str:
        train = self.examples("train")
        source, target = self.tokenizer.decode(train.source(index)), train.target(index)
        return f"⟦{source}⟧ {self.tokenizer.decode(target)}"

    def sample_prompts(self) -> list[str]:
        test = self.examples("test")
        return [
            f"{self._decode(test.source(i))} (reference: {self._decode(test.target(i))})"
            for i in self.sample_indices
        ]

    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The greedily decoded translation."""
        index = self.sample_indices[number]
        return self._translate(model, [self.examples("test").source(index)])[0]

    def score_generation(self, model: PreTrainedModel) -> dict[str, float]:
        """BLEU (Papineni et al. 2002) and chrF (Popović 2015), 0 to 100, with sacrebleu's defaults.

        Of greedily decoded translations of the first 500 test pairs.
        """
        import sacrebleu

        translations: list[str] = []
        test = self.examples("test")
        indices = range(min(len(test), SCORED_PAIRS))
        for start in progress(indices[:: self.generation_batch], "translating test sentences"):
            part = indices[start : start + self.generation_batch]
            translations += self._translate(model, [test.source(i) for i in part])
        references = [[self._decode(test.target(i)) for i in indices]]
        return {
            "bleu": sacrebleu.corpus_bleu(translations, references).score,
            "chrf": sacrebleu.corpus_chrf(translations, references).score,
        }

    def scored_prompts(self) -> list[Tensor]:
        test = self.examples("test")
        return [test.source(i) for i in range(min(len(test), SCORED_PAIRS))]

    def scored_lengths(self) -> list[int]:
        test = self.examples("test")
        return [len(test.target(i)) for i in range(min(len(test), SCORED_PAIRS))]

    @property
    def max_length(self) -> int:
        return self.sequence_length

    @property
    def stop_token_ids(self) -> list[int]:
        return [int(self.tokenizer.eos_token_id)]

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """The whole sources."""
        counts = batch["attention_mask"].sum(-1).tolist()
        return [row[:n] for row, n in zip(batch["input_ids"].cpu(), counts, strict=True)]

    def from_generated(
        self, records: list[dict[str, Any]], teacher_data: DistillationData
    ) -> SentencePairs:
        """The same sources, with the teacher's translations as targets."""
        sources, targets = ([r[key] for r in records] for key in ("prompt_ids", "ids"))
        if not any(targets):
            raise ConfigError("The teacher generated no text. Train it longer.")
        return self._pairs_of(concatenate(sources), concatenate(targets))

    def completion_batch(
        self, prompts: list[Tensor], completions: list[list[int]]
    ) -> dict[str, Tensor]:
        sources = concatenate([prompt.tolist() for prompt in prompts])
        pairs = self._pairs_of(sources, concatenate(completions))
        batch = self.collate([pairs[i] for i in range(len(pairs))])
        return {name: x for name, x in batch.items() if name != "block"}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch without the columns that are padding in every row."""
        batch = collate_trimmed(examples)
        T = int((batch["labels"] != IGNORED).sum(-1).max())
        batch["labels"] = batch["labels"][:, :T].contiguous()
        if "stored" in batch:  # cached predictions, one per label
            batch["stored"] = {name: x[:, :T] for name, x in batch["stored"].items()}
        return batch

    def _pairs_of(
        self, sources: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]
    ) -> SentencePairs:
        return SentencePairs(sources, targets, self.sequence_length, padding_id(self.tokenizer))

    def _decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _translate(self, model: PreTrainedModel, sources: list[Tensor]) -> list[str]:
        from lightning_distill.models.generation import Sampling, generate

        outputs = generate(model, self.tokenizer, sources, self.max_length, Sampling(0.0), 0)
        return [self._decode(ids) for ids in outputs]

    @cached_property
    def _splits(self) -> dict[str, SplitItems[Pair]]:
        """The pairs of each split; those with the same key stay together, in the source's order."""
        groups = self.sources.split(_by_key, "different texts to translate")
        return {
            split: SplitItems(
                [pair for pairs in items for pair in pairs],
                [part for pairs, part in zip(items, parts, strict=True) for _ in pairs],
            )
            for split, (items, parts) in groups.items()
        }

    def _train_texts(self) -> Iterator[str]:
        for pair in self._splits["train"].items:
            yield from (pair.source, pair.target)

    def _make_tokens(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        counts: dict[str, dict[str, int]] = {}
        kept: dict[str, SplitItems[Any]] = {}
        for split in SPLITS:
            pairs, parts = self._splits[split]
            rows = tokenize_pairs(self.tokenizer, pairs)
            fits = [max(map(len, row)) <= self.sequence_length for row in rows]
            kept[split] = SplitItems(list(compress(rows, fits)), list(compress(parts, fits)))
            for side, name in enumerate(("sources", "targets")):
                ids, begin = concatenate([row[side] for row in kept[split].items])
                tensors |= {f"{split}_{name}": ids, f"{split}_{name}_begin": begin}
            size = sum(len(pair.target.encode()) for pair in compress(pairs, fits))
            counts[split] = {"bytes": size, "too_long": fits.count(False)}
        save_file(tensors, folder / "pairs.safetensors")
        (folder / "pairs.json").write_text(json.dumps(counts))
        self._save_parts(kept, folder)


def _by_key(source: Any) -> Iterator[tuple[str, list[Pair]]]:
    """The distinct pairs of each key, with its hash."""
    by_key: dict[str, dict[Pair, None]] = {}
    for pair in source.rows():
        by_key.setdefault(pair.key, {})[pair] = None
    return ((sha256(key), list(pairs)) for key, pairs in by_key.items())
