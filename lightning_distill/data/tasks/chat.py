"""The task of an assistant: what it says in a conversation, and no other token.

conversations → the tokenizer's chat template → tokens, the assistant's marked → split by hash →
blocks of whole conversations, which do not see each other.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.chat_template import ROLES, TEMPLATE, Message, Turns
from lightning_distill.data.packing import Blocks, whole_documents
from lightning_distill.data.splits import SPLITS, sha256, split_by_hash
from lightning_distill.data.tasks.base import PROMPTS, spread
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tokenizer import obtain_tokenizer, tokenizer_hash
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import rouge_l
from lightning_distill.storage.artifacts import Store

EDITION = 1  # raise it when other tokens are made of the same conversations
ANSWERED = 64  # turns of the test split that a model writes, to be held against the references
AT_A_TIME = 32

Read = TypeVar("Read")


class Source(Protocol):
    """Conversations, and a text that changes when they do."""

    def fingerprint(self) -> str: ...

    def read(self, one: Callable[[list[Message]], Read]) -> Iterator[Read]: ...


class Chat(CausalLM):
    """Blocks of whole conversations. Bits per byte are of what the assistant says.

    source: called with the remaining settings; the ones that only it needs.
    sequence_length: tokens a block; a longer conversation is cut there.
    vocab_size: of the tokenizer that is trained here, where no pretrained model brings its own.
    chat_template: a jinja file in the place of the tokenizer's own template.
    """

    streams = False
    shares_tokenizer = True  # one template, and with it one tokenizer, for teacher and student

    def __init__(
        self,
        source: Callable[..., Any],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        chat_template: str | None,
        **settings: Any,
    ) -> None:
        super().__init__(source, sequence_length, batch_size, vocab_size, True, **settings)
        self.conversations: Source = self.source  # type: ignore[assignment]
        self.chat_template = chat_template

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        made_from = {"source": self.conversations.fingerprint(), "chat edition": EDITION}
        self.tokenizer = obtain_tokenizer(
            store, tokenizer, made_from, self._texts, self.vocab_size, ROLES
        )
        # It goes with the tokenizer into the student's folder.
        self.tokenizer.chat_template = self._template(built_in=tokenizer is None)
        made_from["chat_template"] = self.tokenizer.chat_template
        made_from["tokenizer"] = tokenizer_hash(self.tokenizer)
        self.artifact = store.get("tokens", made_from, self._make_tokens)
        self._tokens = load_file(self.artifact.folder / "tokens.safetensors")
        self._bytes = json.loads((self.artifact.folder / "bytes.json").read_text())
        self._stops: list[int] = json.loads((self.artifact.folder / "stops.json").read_text())
        self._packed = {split: self._pack(*self._stream(split), split) for split in SPLITS}

    def examples(self, split: str) -> Blocks:
        return self._packed[split]

    def bytes_per_token(self, split: str) -> float:
        """Bytes of what the assistant says a token of its."""
        return float(self._bytes[split] / self._stream(split)[2].sum())

    @property
    def stop_token_ids(self) -> list[int]:
        return self._stops

    def save(self, model: PreTrainedModel, folder: Any) -> None:
        """Generation with what was saved stops where a turn does."""
        assert model.generation_config is not None
        model.generation_config.eos_token_id = self.stop_token_ids
        super().save(model, folder)

    @torch.no_grad()
    def score_generation(self, model: PreTrainedModel) -> dict[str, float]:
        """ROUGE-L of what the model answers, token by token the likeliest, in 64 turns of the test
        split or as many as there are; the turns before are the reference's."""
        from lightning_distill.models.generation import Sampling, generate

        turns = [self._answered[n] for n in spread(len(self._answered), ANSWERED)]
        written: list[str] = []
        for start in range(0, len(turns), AT_A_TIME):
            prompts = [prompt for prompt, _ in turns[start : start + AT_A_TIME]]
            new = generate(
                model,
                self.tokenizer,
                prompts,
                self.max_length,
                Sampling(0.0),
                0,
                self.stop_token_ids,
            )
            written += map(self._said, new)
        references = [self._said(said.tolist()) for _, said in turns]
        return {"rouge_l": rouge_l(written, references)}

    def check_prompt_length(self, length: int) -> None:
        """A prompt is a conversation up to one of the assistant's turns, however long that is."""

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """Of each block a conversation up to one of the assistant's turns, another one in each
        round."""
        found = []
        places, labels = batch["position_ids"].cpu(), batch["labels"].cpu()
        rounds = (batch["block"] + batch.get("round", 0)).tolist()
        for row, place, label, round_ in zip(
            batch["input_ids"].cpu(), places, labels, rounds, strict=True
        ):
            ends = _begins(label != IGNORED)
            end = int(ends[round_ % len(ends)])
            found.append(row[end - int(place[end]) : end + 1])
        return found

    def describe(self) -> str:
        sizes = ", ".join(
            f"{len(self._tokens[s]):,} {s} ({int(self._stream(s)[2].sum()):,} the assistant's)"
            for s in SPLITS
        )
        said = (
            f"tokens: {sizes}; vocabulary {len(self.tokenizer):,}; "
            f"{self.bytes_per_token('train'):.2f} bytes a token; {self.artifact.key}"
        )
        lengths = torch.cat(
            [self._stream(split)[1].unique(return_counts=True)[1] for split in SPLITS]
        )
        if cut := int((lengths > self.sequence_length).sum()):
            said += (
                f"; {cut:,} of {len(lengths):,} conversations are longer than "
                f"data.sequence_length={self.sequence_length}, and cut there"
            )
        return said

    def _stream(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, conversations and targets, each [S]."""
        tensors = self._tokens
        return tensors[split], tensors[f"{split}_documents"], tensors[f"{split}_targets"]

    def _blocks(self, tokens: Tensor, documents: Tensor, targets: Tensor | None) -> Blocks:
        assert targets is not None
        return self._pack(tokens, documents, targets, "transfer")

    def _pack(self, tokens: Tensor, documents: Tensor, targets: Tensor, what: str) -> Blocks:
        length = self.sequence_length
        found = whole_documents(tokens, documents, targets, length)
        if not len(found[0]):
            raise ConfigError(
                f"No conversation of the {what} set has anything of the assistant's in its first "
                f"{length} tokens. Set a longer data.sequence_length."
            )
        return Blocks(*found[:2], length, True, found[2])

    @cached_property
    def _answered(self) -> list[tuple[Tensor, Tensor]]:
        """Every turn of the test split that has a prompt shorter than a block: the conversation up
        to it, and what the assistant said, with the token that closes it."""
        found = []
        tokens, documents, targets = self._stream("test")
        counts = documents.unique_consecutive(return_counts=True)[1].tolist()
        parts = zip(tokens.long().split(counts), targets.split(counts), strict=True)
        for ids, said in parts:
            for start in (_begins(said[1:]) + 1).tolist():
                rest = said[start:].tolist()
                stop = start + (rest.index(False) if False in rest else len(rest))
                if start < self.sequence_length:
                    found.append((ids[:start], ids[start:stop]))
        return found

    def _prompt_ids(self) -> list[Tensor]:
        return [self._answered[n][0] for n in spread(len(self._answered), PROMPTS)]

    def _said(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _template(self, built_in: bool) -> str:
        if self.chat_template is not None:
            path = Path(self.chat_template).expanduser()
            if not path.is_file():
                raise ConfigError(f"data.chat_template={self.chat_template} is no file.")
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"data.chat_template={self.chat_template} is not UTF-8 text ({error})."
                ) from error
        if built_in:
            return TEMPLATE
        try:
            return self.tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(
                f"The tokenizer of {self.tokenizer.name_or_path} has no chat template. Set "
                "data.chat_template=<a jinja file>."
            ) from error

    def _texts(self) -> Iterator[str]:
        """What is said in the train split."""
        found = self.conversations.read(lambda messages: (_hash(messages), messages))
        for messages in split_by_hash(found, "conversations")["train"]:
            yield from (message["content"] for message in messages if message.get("content"))

    def _make_tokens(self, folder: Path) -> None:
        turns = Turns(self.tokenizer)
        found = self.conversations.read(lambda m: (_hash(m), (*turns(m), _size(m))))
        stops = {self.tokenizer.eos_token_id}
        tensors: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for split, items in split_by_hash(found, "conversations").items():
            tokens = torch.tensor([i for ids, _, _ in items for i in ids], dtype=torch.int32)
            targets = torch.tensor([t for _, said, _ in items for t in said])
            counts = torch.tensor([len(ids) for ids, _, _ in items])
            numbers = torch.arange(len(items), dtype=torch.int32)
            tensors |= {
                split: tokens,
                f"{split}_documents": numbers.repeat_interleave(counts),
                f"{split}_targets": targets,
            }
            sizes[split] = sum(size for _, _, size in items)
            last = targets & ~torch.cat([targets[1:], torch.tensor([False])])
            stops |= set(tokens[last].tolist())
        save_file(tensors, folder / "tokens.safetensors")
        (folder / "bytes.json").write_text(json.dumps(sizes))
        (folder / "stops.json").write_text(json.dumps(sorted(stops)))


def _hash(messages: list[Message]) -> str:
    return sha256(json.dumps(messages, sort_keys=True, default=str))


def _size(messages: list[Message]) -> int:
    """Bytes of what the assistant says."""
    said = (m.get("content", "") for m in messages if m["role"] == "assistant")
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in said)


def _begins(flags: Tensor) -> Tensor:
    """The indices at which runs of True begin: [T] to [R]."""
    before = torch.cat([torch.zeros_like(flags[:1]), flags[:-1]])
    return (flags & ~before).nonzero()[:, 0]
