"""The models of a conversation: what they read, what they remember and how they answer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from lightning_distill.data.assistant_masker import FAILURES
from lightning_distill.data.chat_template import prompt_ids
from lightning_distill.data.sentence_pairs import tokenize_pairs
from lightning_distill.data.sources.base import Message, Pair
from lightning_distill.data.tokenizer import bos_of
from lightning_distill.errors import ConfigError, one_line
from lightning_distill.models.generation import Sampling, generate, seed_of
from lightning_distill.models.inspection import max_positions, stops_of

Write = Callable[[str], None]


@dataclass(frozen=True)
class ChatSettings:
    """system: a system message. max_new_tokens: of an answer. seed: of sampled answers."""

    system: str | None
    sampling: Sampling
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Prompt:
    """ids: the tokens that a model reads. forgotten: the oldest turns, left out for it to fit."""

    ids: list[int]
    forgotten: int = 0


class TextStream(BaseStreamer):
    """Writes a text while its tokens are generated.

    A character may consist of several tokens, so that all tokens are decoded at each step, and an
    incomplete character is written with the tokens that complete it.
    before: tokens that the text continues; they are decoded with it, and not written.
    """

    def __init__(self, tokenizer: Any, write: Write, before: Sequence[int] = ()) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.before, self.ids, self.written = list(before), list[int](), ""
        self.has_prompt = False

    @property
    def text(self) -> str:
        return self._decode([*self.before, *self.ids])[len(self._decode(self.before)) :]

    def put(self, value: Tensor) -> None:
        if self.has_prompt:
            self.ids += value.tolist()
            self._write(self.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        self.has_prompt = True  # the first call brings the prompt

    def end(self) -> None:
        self._write(self.text)

    def _write(self, text: str) -> None:
        self.write(text[len(self.written) :])
        self.written = max(self.written, text, key=len)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class Speaker:
    """A model that answers one text at a time. role: student or teacher."""

    habit: ClassVar[str | None] = None  # what it does with a text, where it does not answer

    def __init__(
        self,
        role: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ChatSettings,
    ) -> None:
        self.role, self.model, self.tokenizer = role, model, tokenizer
        self.settings, self.positions = settings, max_positions(model)
        self.stops = stops_of(model, tokenizer)
        self.answers = 0

    def prompt(self, text: str) -> Prompt:
        """What the model reads to answer the text."""
        raise NotImplementedError

    def fits(self, prompt: Prompt) -> bool:
        """Whether there are tokens, and a position for each of them and for one more."""
        return 0 < len(prompt.ids) < (self.positions or math.inf)

    def answer(self, text: str, prompt: Prompt, write: Write) -> None:
        """Writes the answer while it is generated, and remembers it, as far as it comes."""
        stream, self.answers = self._stream(prompt, write), self.answers + 1
        try:
            generate(
                self.model,
                self.tokenizer,
                [torch.tensor(prompt.ids)],
                self._length(prompt),
                self.settings.sampling,
                seed_of(self.settings.seed, self.answers),
                self.stops,
                streamer=stream,
            )
        finally:
            self.remember(text, prompt, stream.text)

    def remember(self, text: str, prompt: Prompt, answer: str) -> None:
        """Takes a turn into the history, where there is one."""

    def reset(self) -> None:
        """Forgets the history."""

    def _stream(self, prompt: Prompt, write: Write) -> TextStream:
        return TextStream(self.tokenizer, write)

    def _length(self, prompt: Prompt) -> int:
        """The `length` of `generate`."""
        return len(prompt.ids) + self.settings.max_new_tokens


class Continuer(Speaker):
    """A language model without a chat template."""

    habit = "without a chat template, it continues what you type"

    def prompt(self, text: str) -> Prompt:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return Prompt([*bos_of(self.tokenizer), *ids])

    def _stream(self, prompt: Prompt, write: Write) -> TextStream:
        return TextStream(self.tokenizer, write, prompt.ids)


class Translator(Speaker):
    """An encoder-decoder."""

    habit = "it translates what you type"

    def prompt(self, text: str) -> Prompt:
        ((ids, _),) = tokenize_pairs(self.tokenizer, [Pair(text, "", "")])
        return Prompt(ids)

    def fits(self, prompt: Prompt) -> bool:
        """Whether the encoder has a position for each token."""
        return len(prompt.ids) <= (self.positions or math.inf)

    def _length(self, prompt: Prompt) -> int:
        new = self.settings.max_new_tokens
        return min(new, self.positions or new)


class Assistant(Speaker):
    """A model with a chat template. It remembers its conversation, in its own answers.

    Raises ConfigError where the template refuses the system message.
    """

    def __init__(self, *model: Any) -> None:
        super().__init__(*model)
        self.turns: list[list[Message]] = []
        system = self.settings.system
        self.system: list[Message] = [] if system is None else [_message("system", system)]
        try:
            self._encode([], "a")
        except FAILURES as error:
            given = f"chat.system={system}: " if system else ""
            raise ConfigError(
                f"{given}the chat template of the {self.role} fails: {one_line(error)}."
            ) from error

    def prompt(self, text: str) -> Prompt:
        """The system message, the history and the text, without the oldest turns with which the
        longest answer would exceed the model's positions."""
        limit = (self.positions or math.inf) - self.settings.max_new_tokens
        for forgotten in range(len(self.turns) + 1):
            ids = self._encode(self.turns[forgotten:], text)
            if len(ids) <= limit:
                break
        return Prompt(ids, forgotten)

    def remember(self, text: str, prompt: Prompt, answer: str) -> None:
        turn = [_message("user", text), _message("assistant", answer)]
        self.turns = [*self.turns[prompt.forgotten :], turn]

    def reset(self) -> None:
        self.turns.clear()

    def _encode(self, turns: list[list[Message]], text: str) -> list[int]:
        messages = [*self.system, *chain.from_iterable(turns), _message("user", text)]
        return prompt_ids(self.tokenizer, messages)


def speaker(
    role: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings
) -> Speaker:
    """Raises ConfigError for a system message to a model without a chat template."""
    if not model.config.is_encoder_decoder and tokenizer.chat_template:
        return Assistant(role, model, tokenizer, settings)
    kind = Translator if model.config.is_encoder_decoder else Continuer
    if settings.system is not None:
        raise ConfigError(
            f"chat.system={settings.system}: the {role} has no chat template, which a system "
            "message needs. Set chat.system=null."
        )
    return kind(role, model, tokenizer, settings)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
