"""The task of an assistant: what it says in a conversation, and no other token.

conversations → the tokenizer's chat template → tokens, the assistant's marked → split by hash →
blocks of whole conversations that do not attend to each other.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.answering import AnswerSettings
from lightning_distill.data.answers import answered
from lightning_distill.data.assistant_masker import AssistantMasker
from lightning_distill.data.chat_template import ROLES, template_of
from lightning_distill.data.chat_tokens import ChatTokens, Tokenized, write_chat_tokens
from lightning_distill.data.hashes import sha256
from lightning_distill.data.loaders import evenly_spaced
from lightning_distill.data.messages import check_answered
from lightning_distill.data.packing import Blocks, run_starts, whole_documents
from lightning_distill.data.sources.base import Conversation, ConversationSource
from lightning_distill.data.splits import SPLITS
from lightning_distill.data.tasks.base import NUM_SAMPLES
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tokenizer import obtain_tokenizer, tokenizer_hash, warn_of_unknown
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import rouge_l
from lightning_distill.progress import progress
from lightning_distill.storage.artifacts import Store

VERSION = 3  # raise it when other tokens are made of the same conversations
SCORED_TURNS = 64  # turns of the test split that ROUGE-L is computed on


class Chat(CausalLM):
    """Blocks of whole conversations. Bits per byte are of what the assistant says.

    sequence_length: tokens per block; a longer conversation is truncated.
    chat_template: a jinja file that replaces the tokenizer's own template.
    answers: `data` for those of the conversations, or `teacher`: `answerer` gives others, by
    answer_temperature and answer_tokens (see `AnswerSettings`).
    Other settings: see `TextTask`.
    """

    shares_tokenizer = True  # the chat template belongs to one tokenizer

    def __init__(
        self,
        source: Callable[..., ConversationSource],
        *shared: Any,
        chat_template: str | None,
        answers: str = "data",
        answer_temperature: float = 0.7,
        answer_tokens: int = 256,
        **settings: Any,
    ) -> None:
        super().__init__(source, *shared, isolate_documents=True, **settings)
        self.chat_template = chat_template
        self.is_answered_by_teacher = answers == "teacher"
        self.answer_settings = AnswerSettings(answer_temperature, answer_tokens)

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self.is_answered_by_teacher:
            self._ask_teacher(store, tokenizer)
        inputs = {**self.sources.fingerprint(), "chat edition": VERSION}
        self.tokenizer = obtain_tokenizer(
            store, tokenizer, inputs, self._tokenizer_texts, self.vocab_size, ROLES
        )
        # Saved with the tokenizer into the student's folder.
        self.tokenizer.chat_template = template_of(
            self.tokenizer, self.chat_template, is_own=tokenizer is None
        )
        inputs["chat_template"] = self.tokenizer.chat_template
        inputs["tokenizer"] = tokenizer_hash(self.tokenizer)
        self._obtain_tokens(store, inputs)
        self.tokens = ChatTokens(self.artifact.folder)
        streams = self.tokens.streams
        warn_of_unknown(self.tokenizer, {s: one.tokens[one.targets] for s, one in streams.items()})
        self._packed = {split: self._pack(*stream, split) for split, stream in streams.items()}

    def _ask_teacher(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Replaces the sources by ones with the teacher's answers."""
        if self.answerer is None or tokenizer is None:
            raise ConfigError(
                "data.answers=teacher needs one teacher that is loaded, and not trained here: set "
                "teacher=pretrained, gguf or smollm2, or data.answers=data."
            )
        tokenizer.chat_template = template_of(tokenizer, self.chat_template, is_own=False)
        ask = partial(answered, self.answerer, tokenizer, self.answer_settings, store)

        def change(source: ConversationSource) -> ConversationSource:
            self.answered += (one := ask(source),)
            return one.source

        self.sources = self.sources.map(change)

    def examples(self, split: str) -> Blocks:
        return self._packed[split]

    def bytes_per_token(self, split: str) -> float:
        """Bytes per token of what the assistant says."""
        return self.tokens.bytes_per_token(split)

    @property
    def before(self) -> list[int]:
        return []  # the chat template writes it

    @property
    def bos_token(self) -> str | None:
        """Where the chat template writes it."""
        begins = self.tokens.streams["train"].tokens[:1].tolist() == [self.tokenizer.bos_token_id]
        return self.tokenizer.bos_token if begins else None

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """The tokens that close a turn, the most frequent first; then the end-of-text token."""
        ids = [*self.tokens.closing_tokens(), int(self.tokenizer.eos_token_id)]
        return [*dict.fromkeys(ids)]

    @torch.no_grad()
    def score_generation(self, model: PreTrainedModel) -> dict[str, float]:
        """ROUGE-L of greedily decoded answers to up to 64 turns of the test split; the turns
        before them are the reference's."""
        from lightning_distill.models.generation import Sampling, generate

        turns, answers = self._scored_turns, list[str]()
        starts = range(0, len(turns), self.generation_batch)
        for start in progress(starts, "answering test prompts"):
            prompts = [prompt for prompt, _ in turns[start : start + self.generation_batch]]
            completions = generate(
                model,
                self.tokenizer,
                prompts,
                self.max_length,
                Sampling(0.0),
                0,
                self.stop_token_ids,
            )
            answers += map(self._decode, completions)
        references = [self._decode(answer.tolist()) for _, answer in turns]
        return {"rouge_l": rouge_l(answers, references)}

    def scored_prompts(self) -> list[Tensor]:
        return [prompt for prompt, _ in self._scored_turns]

    def scored_lengths(self) -> list[int]:
        return [len(answer) for _, answer in self._scored_turns]

    @property
    def _scored_turns(self) -> list[tuple[Tensor, Tensor]]:
        return [self.test_turns[i] for i in evenly_spaced(len(self.test_turns), SCORED_TURNS)]

    def check_prompt_length(self, length: int) -> None:
        """A prompt is a conversation up to one of the assistant's turns, of any length."""

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """From each block a conversation up to one of the assistant's turns, another in each
        round."""
        positions, labels = batch["position_ids"].cpu(), batch["labels"].cpu()
        rounds = (batch["block"] + batch.get("round", 0)).tolist()
        prompts = []
        for row, position, label, round_ in zip(
            batch["input_ids"].cpu(), positions, labels, rounds, strict=True
        ):
            ends = run_starts(label != IGNORED)
            end = int(ends[round_ % len(ends)])
            prompts.append(row[end - int(position[end]) : end + 1])
        return prompts

    def _split_sizes(self) -> str:
        """Counts of each split, and of what is cut or left out."""
        parts, cut, without_answer = [], 0, {}
        for split in SPLITS:
            blocks = self._packed[split]
            lengths, answered = self.tokens.conversations(split, self.sequence_length)
            assert blocks.targets is not None
            tokens, learned = int((blocks.documents >= 0).sum()), int(blocks.targets.sum())
            counts = f"{tokens:,} tokens, {learned:,} learned"
            parts.append(f"{int(answered.sum()):,} {split} conversations ({counts})")
            cut += int((lengths > self.sequence_length)[answered].sum())
            without_answer[split] = int((~answered).sum())
        if cut:
            parts.append(f"{cut:,} of them longer than data.sequence_length, and cut there")
        if any(without_answer.values()):
            counts = ", ".join(f"{count:,} {split}" for split, count in without_answer.items())
            parts.append(f"left out, with no answer before the cut: {counts}")
        for one in self.answered:
            if one.is_sample:
                parts.append(
                    f"the teacher has answered {one.answered} of {one.total:,} conversations so "
                    "far, and copies of them stand for the others"
                )
        return "; ".join(parts)

    def _blocks(self, tokens: Tensor, documents: Tensor, targets: Tensor | None) -> Blocks:
        assert targets is not None
        return self._pack(tokens, documents, targets, "transfer")

    def _pack(self, tokens: Tensor, documents: Tensor, targets: Tensor, name: str) -> Blocks:
        length = self.sequence_length
        tokens, documents, targets = whole_documents(tokens, documents, targets, length)
        if not len(tokens):
            raise ConfigError(
                f"No conversation of the {name} split has text of the assistant in its first "
                f"{length} tokens. Set a longer data.sequence_length."
            )
        return Blocks(tokens, documents, length, True, targets)

    @cached_property
    def test_turns(self) -> list[tuple[Tensor, Tensor]]:
        """See `ChatTokens.test_turns`."""
        return self.tokens.test_turns(self.sequence_length)

    def _sample_prompt_tokens(self) -> list[Tensor]:
        indices = evenly_spaced(len(self.test_turns), NUM_SAMPLES)
        return [self.test_turns[i][0] for i in indices]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _tokenizer_texts(self) -> Iterator[str]:
        """The messages of the train split, and the tools that they offer."""
        splits = self.sources.split(
            lambda source: source.read(lambda one: (_key(one), one)), "conversations"
        )
        for messages, tools in splits["train"].items:
            yield from (message["content"] for message in messages if message.get("content"))
            calls = [call["function"] for m in messages for call in m.get("tool_calls", ())]
            yield from (json.dumps(one, ensure_ascii=False) for one in [*(tools or ()), *calls])

    def _make_tokens(self, folder: Path) -> None:
        mask = AssistantMasker(self.tokenizer)

        def tokenized(one: Conversation) -> tuple[str, Tokenized]:
            key = _key(one)
            ids, targets = mask(one)
            return key, Tokenized(ids, targets, len(mask.learned_text(ids, targets).encode()))

        splits = self.sources.split(lambda source: source.read(tokenized), "conversations")
        write_chat_tokens(splits, folder)
        self._save_parts(splits, folder)


def _key(conversation: Conversation) -> str:
    """Equal for equal conversations. Raises ConfigError for one without an answer."""
    check_answered(conversation)
    messages, tools = conversation
    content = [messages, tools] if tools else messages
    return sha256(json.dumps(content, sort_keys=True, default=str))
