"""The task of a language model: the next token, everywhere in running text."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.generated_records import retokenized
from lightning_distill.data.packing import Blocks, check_targets
from lightning_distill.data.sources.base import VERSION as STREAM_VERSION
from lightning_distill.data.sources.base import check_streams, first_train_documents, held_out
from lightning_distill.data.splits import SPLITS
from lightning_distill.data.streaming import StreamedBlocks
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.tasks.text import VERSION, BlockTask
from lightning_distill.data.tokenizer import bos_of, marked_text
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import Quality
from lightning_distill.models.inspection import max_positions
from lightning_distill.models.probes import check_causal, check_generates, check_isolates
from lightning_distill.models.sizes import Size, decoder
from lightning_distill.storage.artifacts import Store

PROMPT_TOKENS = 16  # of a sample
NEW_TOKENS = 48


class CausalLM(BlockTask):
    """Blocks of tokens, each of which predicts the next.

    isolate_documents: neither attention nor loss crosses from one document into the next.
    streaming: tokenizes documents during training, see `streaming.py`. At most
    `held_out_documents` are held out for each split, and the first `tokenizer_mb` megabytes of the
    rest train the tokenizer.
    Other settings: see `TextTask`.
    """

    auto_class: ClassVar[Any] = AutoModelForCausalLM
    model_kind, hub_task = "causal language model", "text-generation"
    is_generative = True
    shares_tokenizer = False  # transfer/alignment.py maps between two tokenizers

    def __init__(
        self,
        source: Callable[..., Any],
        *shared: Any,
        isolate_documents: bool,
        streaming: bool = False,
        held_out_documents: int = 200,
        tokenizer_mb: float = 10,
        **settings: Any,
    ) -> None:
        if streaming and "streaming" in inspect.signature(source).parameters:
            settings["streaming"] = True
        super().__init__(source, *shared, **settings)
        if streaming:
            check_streams(self.sources)
        self.streaming = streaming
        self.held_out_documents, self.tokenizer_mb = held_out_documents, tokenizer_mb
        self.isolate_documents = isolate_documents

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().prepare(store, tokenizer)
        if not self.streaming and (length := len(self._tokens["train"])) <= self.sequence_length:
            raise ConfigError(
                f"The text gives {length} tokens to train on, fewer than one block of "
                f"data.sequence_length={self.sequence_length} and the token after it. "
                "Bring more text or set a shorter data.sequence_length."
            )

    @property
    def before(self) -> list[int]:
        """The beginning-of-text token, where the tokenizer adds one to a text."""
        return bos_of(self.tokenizer)

    @property
    def bos_token(self) -> str | None:
        return self.tokenizer.bos_token if self.before else None

    def examples(self, split: str) -> Any:
        if self.streaming and split == "train":
            return StreamedBlocks(
                self.sources,
                self.tokenizer,
                self.before,
                self.separator,
                self.sequence_length,
                self.isolate_documents,
                self.num_workers,
            )
        return self._blocks(self._tokens[split], self._tokens[f"{split}_documents"], None)

    def first_items(self, split: str) -> Tensor:
        blocks = self.examples(split)
        return blocks.documents[:: self.sequence_length][: len(blocks)].long()

    @property
    def is_streaming(self) -> bool:
        return self.streaming

    @property
    def example_settings(self) -> dict[str, Any]:
        return {
            "data.sequence_length": self.sequence_length,
            "data.isolate_documents": self.isolate_documents,
        }

    def new_model(self, size: Size) -> PreTrainedModel:
        return decoder(size, self.tokenizer)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        super().check_model(model, name)
        check_causal(model, name)
        check_generates(model, name)
        if self.isolate_documents:
            check_isolates(model, name)

    def check_labels(self) -> str:
        splits = [split for split in SPLITS if split != "train" or not self.is_streaming]
        return check_targets({split: self.examples(split) for split in splits})

    def quality_metric(self) -> Quality:
        return Quality(self.bytes_per_token("test"))

    def learned_example(self, index: int) -> str:
        block = self.examples("train")[index]
        ids, labels = block["input_ids"], block["labels"]
        learned = labels != IGNORED
        following = torch.cat([ids[1:], labels[-1:].clamp(min=0)])
        ids = torch.cat([ids[:1], torch.where(learned, labels, following)])
        return marked_text(self.tokenizer, ids, torch.cat([torch.tensor([False]), learned]))

    def sample_prompts(self) -> list[str]:
        begin = len(self.before)
        return [str(self.tokenizer.decode(ids[begin:])) for ids in self._sample_prompt_tokens()]

    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The prompt's continuation, sampled at temperature 1."""
        from lightning_distill.models.generation import Sampling, generate

        ids = self._sample_prompt_tokens()[number]
        if prompt is not None:
            text = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([*self.before, *text])
        if positions := max_positions(model):
            ids = ids[1 - positions :]
        length = len(ids) + NEW_TOKENS
        stops = self.stop_token_ids
        (completion,) = generate(model, self.tokenizer, [ids], length, Sampling(1.0), seed, stops)
        return str(self.tokenizer.decode(completion, skip_special_tokens=True))

    @property
    def stop_token_ids(self) -> list[int]:
        return [self.tokenizer.eos_token_id]

    @property
    def max_length(self) -> int:
        return self.sequence_length + 1

    def check_prompt_length(self, length: int) -> None:
        if length >= self.sequence_length:
            raise ConfigError(
                f"transfer.prompt_length={length} must be less than "
                f"data.sequence_length={self.sequence_length}."
            )

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """The first tokens of each block; with isolated documents, only those of the last document
        that begins among them."""
        ids, positions = batch["input_ids"].cpu(), batch["position_ids"].cpu()
        prompts = []
        for row, position, label in zip(ids, positions, batch["labels"].cpu(), strict=True):
            end = min(length, int((label != IGNORED).nonzero().max()) + 1)  # padding follows
            begins = (position[:end] == 0).nonzero()
            prompts.append(row[int(begins.max()) if len(begins) else 0 : end])
        return prompts

    def from_generated(
        self, records: list[dict[str, Any]], teacher_data: DistillationData
    ) -> Blocks:
        """Blocks of all sequences, one after the other."""
        tokens: list[int] = []
        documents: list[int] = []
        targets: list[bool] = []
        for number, record in enumerate(records):
            prompt, completion = retokenized(record, teacher_data.tokenizer, self.tokenizer)
            tokens += [*prompt, *completion]
            documents += [number] * (len(prompt) + len(completion))
            targets += [False] * len(prompt) + [True] * len(completion)
        if len(tokens) <= self.sequence_length:
            raise ConfigError(
                f"The teacher generated {len(tokens)} tokens, fewer than one block of "
                f"data.sequence_length={self.sequence_length}. Set more transfer.num_sequences."
            )
        return self._blocks(
            torch.tensor(tokens, dtype=torch.int32),
            torch.tensor(documents, dtype=torch.int32),
            torch.tensor(targets),
        )

    def completion_batch(
        self, prompts: list[Tensor], completions: list[list[int]]
    ) -> dict[str, Tensor]:
        ids = torch.zeros(len(completions), self.max_length, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            sequence = torch.cat([prompt, torch.tensor(completion)])
            ids[b, : len(sequence)] = sequence
            labels[b, len(prompt) : len(sequence)] = sequence[len(prompt) :]
        positions = torch.arange(self.sequence_length).expand(len(completions), -1)
        return {"input_ids": ids[:, :-1], "labels": labels[:, 1:], "position_ids": positions}

    def _blocks(self, tokens: Tensor, documents: Tensor, targets: Tensor | None) -> Blocks:
        bos = self.before[0] if self.before else None
        return Blocks(tokens, documents, self.sequence_length, self.isolate_documents, targets, bos)

    def _sample_prompt_tokens(self) -> list[Tensor]:
        blocks, width = self.examples("test"), min(PROMPT_TOKENS, self.sequence_length)
        return [blocks[index]["input_ids"][:width] for index in self.sample_indices]

    def _split_sizes(self) -> str:
        return "train streamed, " * self.streaming + super()._split_sizes()

    def _made_from(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self.streaming:
            return super()._made_from()
        inputs = {
            **self.sources.fingerprint(quick=True),
            "edition": VERSION,
            "streaming": STREAM_VERSION,
        }
        return (
            inputs | {"tokenizer_mb": self.tokenizer_mb},
            inputs | {"held_out_documents": self.held_out_documents},
        )

    @cached_property
    def _documents(self) -> Mapping[str, Any]:
        """The documents of each split; of a stream only those held out."""
        if self.streaming:
            return held_out(self.sources, self.held_out_documents)
        return self._split_documents()

    def _tokenizer_texts(self) -> Iterable[str]:
        if self.streaming:
            return first_train_documents(self.sources, self.tokenizer_mb)
        return super()._tokenizer_texts()
