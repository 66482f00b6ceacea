"""The task of a translator: an encoder reads a text, a decoder writes it in another language.

pairs → split by hash → one tokenizer for both sides (trained on the train split) → tokens.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.sentences import Sentences, joined
from lightning_distill.data.sources.pairs import Pair
from lightning_distill.data.splits import SPLITS, sha256, split_by_hash
from lightning_distill.data.tasks.base import DistillationData, trimmed
from lightning_distill.data.tokenizer import check_reads, obtain_tokenizer, tokenizer_hash
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import Quality
from lightning_distill.models.sizes import Size, encoder_decoder
from lightning_distill.storage.artifacts import Store

EDITION = 1  # raise it when this file starts to give other tokens for the same pairs
SCORED = 500  # test pairs that are translated for BLEU and chrF: the first so many
AT_ONCE = 64  # of them


class Source(Protocol):
    """What a file of this package offers: pairs, and a text that changes when they do."""

    def fingerprint(self) -> str: ...

    def pairs(self) -> Iterator[Pair]: ...


class Translation(DistillationData):
    """Pairs from one source.

    source: called with the remaining settings; the ones that only it needs.
    sequence_length: tokens of each side at most, the end included; longer pairs are left out.
    vocab_size: of the tokenizer that is trained here, where no pretrained model brings its own.
    """

    auto_class = AutoModelForSeq2SeqLM
    model_kind, hub_task = "sequence-to-sequence model", "translation"
    is_generative = True
    continues_prompt = False

    def __init__(
        self,
        source: Callable[..., Source],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        num_workers: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.source = source(**settings)
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        made_from: dict[str, Any] = {"source": self.source.fingerprint(), "edition": EDITION}
        self.tokenizer = obtain_tokenizer(
            store, tokenizer, made_from, self._train_texts, self.vocab_size, for_pairs=True
        )
        made_from["tokenizer"] = tokenizer_hash(self.tokenizer)
        made_from["data.sequence_length"] = self.sequence_length
        self.artifact = store.get("tokens", made_from, self._make_tokens)
        self._tokens = load_file(self.artifact.folder / "pairs.safetensors")
        self._known = json.loads((self.artifact.folder / "pairs.json").read_text())
        for split in SPLITS:
            if not len(self.examples(split)):
                raise ConfigError(
                    f"data.sequence_length={self.sequence_length} is too short for all "
                    f"{self._known[split]['too_long']} pairs of the {split} split; set a longer "
                    "one, or bring more pairs."
                )

    def examples(self, split: str) -> Sentences:
        sources, targets = (
            (self._tokens[f"{split}_{side}"], self._tokens[f"{split}_{side}_begin"])
            for side in ("sources", "targets")
        )
        return Sentences(sources, targets, self.sequence_length, self._padding)

    @property
    def example_settings(self) -> dict[str, Any]:
        return {"data.sequence_length": self.sequence_length}

    def new_model(self, size: Size) -> PreTrainedModel:
        return encoder_decoder(size, self.tokenizer, self.sequence_length)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        config = model.config
        if not config.is_encoder_decoder:
            raise ConfigError(
                f"{name}, a {type(model).__name__}, is no encoder-decoder, which translation "
                "needs: a Marian, T5 or BART model, for one."
            )
        if config.decoder_start_token_id is None:
            raise ConfigError(f"{name}: its config.json has no decoder_start_token_id.")
        check_reads(model, name, self.tokenizer, self.sequence_length)

    def quality_metric(self) -> Quality:
        count = len(self._tokens["test_targets"])
        return Quality(self._known["test"]["bytes"] / count)

    def score_generation(self, model: PreTrainedModel) -> dict[str, float]:
        """BLEU (Papineni et al. 2002, as sacreBLEU counts it) and chrF (Popović 2015), 0 to 100,
        of the likeliest tokens (greedy) for the first SCORED pairs of the test split."""
        from torchmetrics.text import CHRFScore, SacreBLEUScore

        bleu: Any = SacreBLEUScore()
        chrf: Any = CHRFScore(n_word_order=0)
        test = self.examples("test")
        numbers = range(min(len(test), SCORED))
        for start in numbers[::AT_ONCE]:
            part = numbers[start : start + AT_ONCE]
            said = self._translate(model, [test.source(i) for i in part])
            truth = [[self._text(test.target(i))] for i in part]
            bleu.update(said, truth)
            chrf.update(said, truth)
        return {"bleu": 100 * float(bleu.compute()), "chrf": 100 * float(chrf.compute())}

    def sample_prompts(self) -> list[str]:
        test = self.examples("test")
        return [
            f"{self._text(test.source(i))} (reference: {self._text(test.target(i))})"
            for i in self.sample_indices
        ]

    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The translation, of the likeliest tokens."""
        return self._translate(model, [self.examples("test").source(self.sample_indices[number])])[
            0
        ]

    @property
    def max_length(self) -> int:
        return self.sequence_length

    @property
    def stop_token_ids(self) -> list[int]:
        return [int(self.tokenizer.eos_token_id)]

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """The sources, whole."""
        counts = batch["attention_mask"].sum(-1).tolist()
        return [row[:n] for row, n in zip(batch["input_ids"].cpu(), counts, strict=True)]

    def from_generated(self, lines: list[dict[str, Any]], theirs: DistillationData) -> Sentences:
        """The same sources, with the teacher's translations as targets."""
        sources, targets = ([line[key] for line in lines] for key in ("prompt_ids", "ids"))
        if not any(targets):
            raise ConfigError("The teacher has written nothing. Train it longer.")
        return Sentences(joined(sources), joined(targets), self.sequence_length, self._padding)

    def completion_batch(self, prompts: list[Tensor], new: list[list[int]]) -> dict[str, Tensor]:
        pairs = Sentences(
            joined([own.tolist() for own in prompts]),
            joined(new),
            self.sequence_length,
            self._padding,
        )
        batch = self.collate([pairs[i] for i in range(len(pairs))])
        return {name: x for name, x in batch.items() if name != "block"}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch without the columns that are padding in all of its rows."""
        batch = trimmed(examples)
        T = int((batch["labels"] != IGNORED).sum(-1).max())
        batch["labels"] = batch["labels"][:, :T].contiguous()
        if "stored" in batch:
            batch["stored"] = {name: x[:, :T] for name, x in batch["stored"].items()}
        return batch

    def check_labels(self) -> str:
        counts = {split: len(self._tokens[f"{split}_targets"]) for split in SPLITS}
        said = ", ".join(f"{count:,} of {split}" for split, count in counts.items())
        return f"the translations' tokens, {said}"

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self.examples(s)):,} {s}" for s in SPLITS)
        left_out = sum(known["too_long"] for known in self._known.values())
        longer = f"; {left_out:,} longer than data.sequence_length left out" if left_out else ""
        return f"pairs: {sizes}{longer}; vocabulary {len(self.tokenizer):,}; {self.artifact.key}"

    @property
    def _padding(self) -> int:
        found = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if found is None else found)

    def _text(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _translate(self, model: PreTrainedModel, sources: list[Tensor]) -> list[str]:
        from lightning_distill.models.generation import Sampling, generate

        said = generate(model, self.tokenizer, sources, self.max_length, Sampling(0.0), 0)
        return [self._text(ids) for ids in said]

    @cached_property
    def _pairs(self) -> dict[str, list[Pair]]:
        """The pairs of each split. Those of one key stay together, in the order of the source."""
        together: dict[str, dict[Pair, None]] = {}
        for pair in self.source.pairs():
            together.setdefault(pair.key, {})[pair] = None
        hashed = ((sha256(key), list(pairs)) for key, pairs in together.items())
        splits = split_by_hash(hashed, "different texts to translate")
        return {split: [p for pairs in groups for p in pairs] for split, groups in splits.items()}

    def _train_texts(self) -> Iterator[str]:
        for pair in self._pairs["train"]:
            yield from (pair.source, pair.target)

    def _make_tokens(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        known: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            pairs = self._pairs[split]
            ask: Any = self.tokenizer
            sources = ask([pair.source for pair in pairs], verbose=False)["input_ids"]
            targets = ask(text_target=[pair.target for pair in pairs], verbose=False)["input_ids"]
            rows = [
                (self._closed(s), self._closed(t)) for s, t in zip(sources, targets, strict=True)
            ]
            fit = [max(map(len, row)) <= self.sequence_length for row in rows]
            for side, name in enumerate(("sources", "targets")):
                ids, begin = joined(
                    [row[side] for row, fits in zip(rows, fit, strict=True) if fits]
                )
                tensors |= {f"{split}_{name}": ids, f"{split}_{name}_begin": begin}
            size = sum(len(p.target.encode()) for p, fits in zip(pairs, fit, strict=True) if fits)
            known[split] = {"bytes": size, "too_long": fit.count(False)}
        save_file(tensors, folder / "pairs.safetensors")
        (folder / "pairs.json").write_text(json.dumps(known))

    def _closed(self, ids: list[int]) -> list[int]:
        eos = int(self.tokenizer.eos_token_id)
        return ids if ids[-1:] == [eos] else [*ids, eos]
