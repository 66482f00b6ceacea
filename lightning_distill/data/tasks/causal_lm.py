"""The task of a language model: the next token, everywhere in a stream of text.

documents → split by hash → tokenizer (trained on the train split) → tokens → blocks.
"""

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.packing import Blocks, check_targets
from lightning_distill.data.sources.base import EDITION as STREAMED
from lightning_distill.data.sources.base import Source, check_streams, first_texts, held_out
from lightning_distill.data.splits import SPLITS
from lightning_distill.data.streaming import Stream
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.token_files import mapped, split_on_disk, write_tokens
from lightning_distill.data.tokenizer import check_reads, obtain_tokenizer, tokenizer_hash
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import Quality
from lightning_distill.models.document_isolation import check_isolates
from lightning_distill.models.sizes import Size, decoder
from lightning_distill.storage.artifacts import Store

EDITION = 1  # raise it when this file starts to give other tokens for the same text
PROMPT_TOKENS = 16
NEW_TOKENS = 48


class CausalLM(DistillationData):
    """Blocks of tokens from one source.

    source: called with the remaining settings; the ones that only it needs.
    sequence_length: tokens a block.
    vocab_size: of the tokenizer that is trained here, where no pretrained model brings its own.
    isolate_documents: neither attention nor loss crosses from one document into the next.
    streaming: documents are tokenized while a model trains on them, see `streaming.py`; of these
    `held_out_documents` at most are held out for each split, and a tokenizer is trained on the
    first `tokenizer_mb` megabytes of the rest.
    """

    auto_class: ClassVar[Any] = AutoModelForCausalLM
    model_kind, hub_task = "causal language model", "text-generation"
    is_generative = True
    streams: ClassVar[bool] = True  # can train on text that is tokenized on the way
    shares_tokenizer = False  # transfer/alignment.py brings two tokenizers together
    needs: ClassVar[tuple[str, ...]] = ("eos_token",)  # of the tokenizer
    special_tokens: ClassVar[tuple[str, ...]] = ()  # of one that is trained here, besides that

    def __init__(
        self,
        source: Callable[..., Source],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        isolate_documents: bool,
        num_workers: int = 0,
        streaming: bool = False,
        held_out_documents: int = 200,
        tokenizer_mb: float = 10,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if streaming:
            if not self.streams:
                raise ConfigError(f"data.streaming=true is not there for a {self.model_kind}.")
            if "streaming" in inspect.signature(source).parameters:
                settings["streaming"] = True
        self.source = source(**settings)
        if streaming:
            check_streams(self.source)
        self.streams_train = streaming
        self.held_out_documents, self.tokenizer_mb = held_out_documents, tokenizer_mb
        self._folder = Path(tempfile.gettempdir())  # for documents that are not held in memory
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.isolate_documents = isolate_documents

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._folder = store.root / "tokens"
        of_tokenizer, of_tokens = self._made_from()
        self.tokenizer = obtain_tokenizer(
            store,
            tokenizer,
            of_tokenizer,
            self._train_texts,
            self.vocab_size,
            self.special_tokens,
            needs=self.needs,
        )
        of_tokens["tokenizer"] = tokenizer_hash(self.tokenizer)
        self.artifact = store.get("tokens", of_tokens, self._make_tokens)
        self.__dict__.pop("_documents", None)  # the tokens are there, and the texts' file may go
        self._tokens = mapped(self.artifact.folder / "tokens.safetensors")
        self._bytes = json.loads((self.artifact.folder / "bytes.json").read_text())
        if self.streams_train:
            return
        if (length := len(self._tokens["train"])) <= self.sequence_length:
            raise ConfigError(
                f"The text gives {length} tokens to train on, fewer than one block of "
                f"data.sequence_length={self.sequence_length} and the token after it. "
                "Bring more text or set a shorter data.sequence_length."
            )

    @property
    def closing(self) -> list[int]:
        """The token behind each document."""
        return [int(self.tokenizer.eos_token_id)]

    def examples(self, split: str) -> Any:
        if self.streams_train and split == "train":
            return Stream(
                self.source,
                self.tokenizer,
                self.closing,
                self.sequence_length,
                self.isolate_documents,
                self.num_workers,
            )
        return self._blocks(self._tokens[split], self._tokens[f"{split}_documents"], None)

    @property
    def example_settings(self) -> dict[str, Any]:
        return {
            "data.sequence_length": self.sequence_length,
            "data.isolate_documents": self.isolate_documents,
        }

    def new_model(self, size: Size) -> PreTrainedModel:
        return decoder(size, self.tokenizer)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        check_reads(model, name, self.tokenizer, self.sequence_length)
        if self.isolate_documents:
            check_isolates(model, name)

    def quality_metric(self) -> Quality:
        return Quality(self.bytes_per_token("test"))

    def bytes_per_token(self, split: str) -> float:
        split = split if split in self._tokens else "validation"  # much like what is streamed
        return self._bytes[split] / len(self._tokens[split])

    def sample_prompts(self) -> list[str]:
        return [str(self.tokenizer.decode(ids)) for ids in self._prompt_ids()]

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """How it goes on, sampled at T = 1."""
        ids = self._prompt_ids()[number]
        if prompt is not None:
            ids = torch.tensor(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        torch.manual_seed(seed)
        given = ids[None].to(model.device)
        written: Tensor = model.eval().generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            eos_token_id=self.stop_token_ids,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        new = written[0, given.shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

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
        """The first tokens of each block, or fewer: with documents kept apart, those of the last
        document that begins there."""
        ids, places = batch["input_ids"].cpu(), batch["position_ids"].cpu()
        found = []
        for row, place, label in zip(ids, places, batch["labels"].cpu(), strict=True):
            end = min(length, int((label != IGNORED).nonzero().max()) + 1)  # filled up behind that
            begins = (place[:end] == 0).nonzero()
            found.append(row[int(begins.max()) if len(begins) else 0 : end])
        return found

    def from_generated(self, lines: list[dict[str, Any]], theirs: DistillationData) -> Blocks:
        """All sequences one after the other, in blocks."""
        tokens: list[int] = []
        documents: list[int] = []
        targets: list[bool] = []
        for number, line in enumerate(lines):
            begin, new = line["prompt_ids"], line["ids"]
            if theirs is not self:  # the student reads it in its own tokens
                ended = new[-1:] == [theirs.tokenizer.eos_token_id]
                begin, new = (
                    self.tokenizer(line[part], add_special_tokens=False, verbose=False)["input_ids"]
                    for part in ("prompt", "text")
                )
                new = [*new, self.tokenizer.eos_token_id] if ended else new
            tokens += [*begin, *new]
            documents += [number] * (len(begin) + len(new))
            targets += [False] * len(begin) + [True] * len(new)
        if len(tokens) <= self.sequence_length:
            raise ConfigError(
                f"The teacher has written {len(tokens)} tokens, fewer than one block of "
                f"data.sequence_length={self.sequence_length}. Set more transfer.num_sequences."
            )
        return self._blocks(
            torch.tensor(tokens, dtype=torch.int32),
            torch.tensor(documents, dtype=torch.int32),
            torch.tensor(targets),
        )

    def completion_batch(self, prompts: list[Tensor], new: list[list[int]]) -> dict[str, Tensor]:
        ids = torch.zeros(len(new), self.max_length, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for b, (own, said) in enumerate(zip(prompts, new, strict=True)):
            whole = torch.cat([own, torch.tensor(said)])
            ids[b, : len(whole)] = whole
            labels[b, len(own) : len(whole)] = whole[len(own) :]
        places = torch.arange(self.sequence_length).expand(len(new), -1)
        return {"input_ids": ids[:, :-1], "labels": labels[:, 1:], "position_ids": places}

    def check_labels(self) -> str:
        return check_targets({s: self.examples(s) for s in SPLITS if s in self._tokens})

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self._tokens[s]):,} {s}" for s in SPLITS if s in self._tokens)
        sizes = f"train streamed, {sizes}" if self.streams_train else sizes
        return (
            f"tokens: {sizes}; vocabulary {len(self.tokenizer):,}; "
            f"{self.bytes_per_token('train'):.2f} bytes a token; {self.artifact.key}"
        )

    def _blocks(self, tokens: Tensor, documents: Tensor, targets: Tensor | None) -> Blocks:
        return Blocks(tokens, documents, self.sequence_length, self.isolate_documents, targets)

    def _prompt_ids(self) -> list[Any]:
        blocks, width = self.examples("test"), min(PROMPT_TOKENS, self.sequence_length)
        return [blocks[number]["input_ids"][:width] for number in self.sample_indices]

    def _made_from(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What decides the tokenizer, and what the tokens, beside it."""
        if not self.streams_train:
            known = {"source": self.source.fingerprint(), "edition": EDITION}
            return dict(known), known
        stamp = getattr(self.source, "stamp", self.source.fingerprint)()
        known = {"source": stamp, "edition": EDITION, "streaming": STREAMED}
        return (
            known | {"tokenizer_mb": self.tokenizer_mb},
            known | {"held_out_documents": self.held_out_documents},
        )

    @cached_property
    def _documents(self) -> Mapping[str, Sequence[str]]:
        """The documents of each split, on disk; those held out, where the rest is streamed."""
        if self.streams_train:
            return held_out(self.source, self.held_out_documents)
        texts = (text for text in self.source.documents() if text.strip())
        what = "documents (a .txt is cut every 1,500 to 3,000 characters)"
        return split_on_disk(texts, self._folder, what)

    def _train_texts(self) -> Iterable[str]:
        """That a tokenizer is trained on."""
        if self.streams_train:
            return first_texts(self.source, self.tokenizer_mb)
        return self._documents["train"]

    def _make_tokens(self, folder: Path) -> None:
        splits = {split: self._documents[split] for split in SPLITS if split in self._documents}
        sizes = write_tokens(splits, self.tokenizer, self.closing, folder)
        (folder / "bytes.json").write_text(json.dumps(sizes))
