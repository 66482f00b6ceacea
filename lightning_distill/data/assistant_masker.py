"""Which tokens of a conversation are the assistant's, by the tokenizer's chat template.

A template with `{% generation %}` around the assistant's content marks them itself. For any other
template, the conversation is rendered up to each of the assistant's turns, once with the generation
prompt and once with the turn: the difference is the turn. This requires that a template renders the
beginning of a conversation in the same way whatever follows; other conversations are refused.
"""

import json
import re
from datetime import datetime
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.rendered_checks import RenderedChecks
from lightning_distill.data.sources.base import Conversation, Message
from lightning_distill.data.tokenizer import unknown_id
from lightning_distill.errors import ConfigError

MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
FAILURES = (TemplateError, TypeError, ValueError, LookupError)  # what rendering may raise
REMEDY = (
    "Set data.chat_template=<a jinja file> that has {% generation %} and {% endgeneration %} "
    "around what the assistant says"
)

CLOCK = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")  # transformers' name for today
TODAY = datetime(2025, 1, 1)

Span = tuple[int, int]  # of token indices, from start up to stop


def without_clock(template: str) -> str:
    """The template with one day in the place of today, so that tokens do not depend on it.

    Raises ConfigError where it computes the format of the date.
    """
    fixed = CLOCK.sub(lambda match: json.dumps(TODAY.strftime(match[2])), template)
    if "strftime_now(" in fixed:
        raise ConfigError(
            "the chat template writes the date in a format that it computes, so that tokens would "
            "depend on the day. Set data.chat_template=<a jinja file> without it."
        )
    return fixed


class AssistantMasker:
    """Tokenizes conversations and marks the assistant's turns, each with the token that closes it.

    Raises ConfigError where the tokenizer's template has a syntax error.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.template = without_clock(tokenizer.get_chat_template())
        self.has_markers = bool(MARKERS.search(self.template))
        if self.has_markers and not tokenizer.is_fast:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path} returns no character offsets, "
                "which {% generation %} in its chat template needs. Add its tokenizer.json."
            )
        # An unknown token closes nothing, and padding neither.
        special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special -= {unknown_id(tokenizer), tokenizer.pad_token_id}
        self.special_ids = {tokenizer.eos_token_id, *special}
        self.checks = RenderedChecks(tokenizer)
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"data.chat_template, or the tokenizer's own, line {error.lineno}: {error.message}."
            ) from error
        except FAILURES:  # the template may need more than one message
            pass

    def __call__(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """The token ids, and which of them carry loss, both [T].

        Raises ConfigError where the template fails, does not tell the assistant's tokens, or leaves
        out what the assistant says or calls.
        """
        self.checks.check_controls(conversation)
        mark = self._from_markers if self.has_markers else self._from_diffs
        ids, spans = mark(conversation)
        targets = [False] * len(ids)
        for start, stop in spans:
            stop = self._closed(ids, start, stop)
            targets[start:stop] = [True] * (stop - start)
        text = self._decode(ids) if conversation.tools else ""
        self.checks.check_complete(conversation, text, self.learned_text(ids, targets))
        return ids, targets

    def learned_text(self, ids: list[int], targets: list[bool]) -> str:
        """What carries loss, without special tokens."""
        kept = [i for i, is_target in zip(ids, targets, strict=True) if is_target]
        return self._decode(kept)

    def _decode(self, ids: list[int]) -> str:
        decode = self.tokenizer.decode
        return str(decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _from_markers(self, conversation: Conversation) -> tuple[list[int], list[Span]]:
        """Token ids and the assistant's spans, from the template's markers."""
        encoding = self._render(
            conversation,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        ids, mask = encoding["input_ids"], encoding["assistant_masks"]
        offsets = encoding["offset_mapping"]
        spans, stop = [], 0
        while 1 in mask[stop:]:
            start = mask.index(1, stop)
            stop = mask.index(0, start) if 0 in mask[start:] else len(mask)
            # The mask may have only the first of the tokens that make up one character.
            while stop < len(ids) and offsets[stop][0] < offsets[stop - 1][1]:
                stop += 1
            spans.append((start, stop))
        turns = sum(message["role"] == "assistant" for message in conversation.messages)
        if len(spans) < turns:
            marked = f"{len(spans)} of {turns} turns" if spans else "no text"
            raise ConfigError(f"the chat template marks {marked} as the assistant's. {REMEDY}")
        return ids, spans

    def _from_diffs(self, conversation: Conversation) -> tuple[list[int], list[Span]]:
        """Token ids and the assistant's spans, from what each turn adds."""
        text = self._text(conversation)
        messages, tools = conversation
        cuts = [0]  # where turns of the assistant begin and end, in characters
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = Conversation(messages[:k], tools)
            prompt = self._text(before, add_generation_prompt=True)
            with_turn = self._text(Conversation(messages[: k + 1], tools))
            if not text.startswith(with_turn):
                raise ConfigError(
                    f"the chat template writes message {k + 1} otherwise once others follow it, "
                    f"so that its tokens cannot be identified. {REMEDY}"
                )
            if not with_turn.startswith(prompt):
                raise ConfigError(
                    f"by the chat template, message {k + 1} does not begin with the prompt that "
                    f"asks for it, which ends in {prompt[-20:]!r}, so that its tokens cannot be "
                    f"identified. {REMEDY}"
                )
            if prompt == self._text(before):
                _check_no_header(message, with_turn[len(prompt) :])
            cuts += [len(prompt), len(with_turn)]
        return self._encoded(text, cuts)

    def _encoded(self, text: str, cuts: list[int]) -> tuple[list[int], list[Span]]:
        """Token ids of the text, and of every second part of it between cuts.

        Where a token would cross a cut, the parts are encoded one by one, as a model that answers
        a prompt sees them.
        """
        ids, *beginnings = self._ids([text, *(text[:cut] for cut in cuts)])
        ends = [len(beginning) for beginning in beginnings]
        if any(ids[: len(beginning)] != beginning for beginning in beginnings):
            parts = self._ids([text[i:j] for i, j in pairwise([*cuts, len(text)])])
            ends = [sum(map(len, parts[:n])) for n in range(len(cuts))]
            apart = [i for part in parts for i in part]
            if self.tokenizer.decode(apart) != self.tokenizer.decode(ids):
                raise ConfigError(
                    "a token crosses the beginning or the end of what the assistant says, so that "
                    f"its tokens cannot be identified. {REMEDY}"
                )
            ids = apart
        return ids, list(zip(ends[1::2], ends[2::2], strict=True))

    def _closed(self, ids: list[int], start: int, stop: int) -> int:
        """The end of a turn: behind the special token that closes it, without the blank line that
        may follow."""
        special = [t for t in range(start, stop) if ids[t] in self.special_ids]
        if special and not self.tokenizer.decode(ids[special[-1] + 1 : stop]).strip():
            return special[-1] + 1
        if self.has_markers and stop < len(ids) and ids[stop] in self.special_ids:
            return stop + 1  # outside of the markers
        raise ConfigError(
            "the chat template closes what the assistant says with no special token, and a "
            "student would not learn to stop. Set data.chat_template=<a jinja file> that ends "
            "it with {{ eos_token }}"
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _text(self, conversation: Conversation, **options: Any) -> str:
        return str(self._render(conversation, tokenize=False, **options))

    def _render(self, conversation: Conversation, **options: Any) -> Any:
        messages, tools = conversation
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools, chat_template=self.template, **options
            )
        except FAILURES as error:
            raise ConfigError(f"the chat template fails: {' '.join(str(error).split())}") from error


def _check_no_header(message: Message, turn: str) -> None:
    """Raises ConfigError where a template without a generation prompt adds a header to an
    assistant's turn. turn: what the template writes for the message."""
    if not turn.lstrip().startswith((message.get("content") or "").strip()):
        raise ConfigError(
            "the chat template has no prompt for the assistant (add_generation_prompt), so "
            f"that a turn's header cannot be told from its text. {REMEDY}"
        )
