"""Which tokens of a conversation are the assistant's, by the tokenizer's chat template.

A template with `{% generation %}` around the assistant's content marks them itself. For any other
template, the conversation is rendered up to each of the assistant's turns, once with the generation
prompt and once with the turn: the difference is the turn. This requires that a template renders the
beginning of a conversation in the same way whatever follows; other conversations are refused.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.sources.base import Conversation
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")  # tokens of a trained tokenizer

# The template of a tokenizer trained here: the end-of-text token closes an assistant's turn.
TEMPLATE = """\
{%- if tools %}{{ "<|system|>" ~ (tools | tojson) }}{% endif %}
{%- for message in messages %}
{%- if message.role not in ("system", "user", "assistant", "tool") %}
{{- raise_exception("there is no role " ~ message.role) }}
{%- endif %}
{{- "<|" ~ message.role ~ "|>" }}
{%- if message.role == "assistant" %}
{%- generation %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
{{- "<tool_call>" ~ (call.function | tojson) ~ "</tool_call>" }}
{%- endfor %}{{ eos_token }}{% endgeneration %}
{%- else %}
{{- message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|assistant|>" }}{% endif %}
"""

MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
FAILURES = (TemplateError, TypeError, ValueError, LookupError)  # what rendering may raise
REMEDY = (
    "Set data.chat_template=<a jinja file> that has {% generation %} and {% endgeneration %} "
    "around what the assistant says"
)

Span = tuple[int, int]  # of token indices, from start up to stop


def template_of(tokenizer: PreTrainedTokenizerBase, file: str | None, is_own: bool) -> str:
    """The template in the file, else that of the tokenizer. is_own: it was trained here.

    Raises ConfigError where there is none.
    """
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ConfigError(f"data.chat_template={file} is no file.")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"data.chat_template={file} is not UTF-8 text ({error}).") from error
    if is_own:
        return TEMPLATE
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template. Set "
            "data.chat_template=<a jinja file>."
        ) from error


class AssistantMasker:
    """Tokenizes conversations and marks the assistant's turns, each with the token that closes it.

    Raises ConfigError where the tokenizer's template has a syntax error.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.has_markers = bool(MARKERS.search(tokenizer.get_chat_template()))
        if self.has_markers and not tokenizer.is_fast:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path} returns no character offsets, "
                "which {% generation %} in its chat template needs. Add its tokenizer.json."
            )
        self._warned_of_tools = False
        special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.special_ids = {tokenizer.eos_token_id, *special}
        self.control = re.compile("|".join(map(re.escape, special.values())) or r"(?!)")
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
        for number, message in enumerate(conversation.messages, 1):
            calls = json.dumps(message.get("tool_calls") or "", ensure_ascii=False)
            if match := self.control.search(f"{message.get('content', '')} {calls}"):
                raise ConfigError(
                    f"message {number} holds {match[0]!r}, which the tokenizer reads as a control "
                    "token"
                )
        mark = self._from_markers if self.has_markers else self._from_diffs
        ids, spans = mark(conversation)
        targets = [False] * len(ids)
        for start, stop in spans:
            stop = self._closed(ids, start, stop)
            targets[start:stop] = [True] * (stop - start)
        self._check_complete(conversation, ids, targets)
        return ids, targets

    def learned_text(self, ids: list[int], targets: list[bool]) -> str:
        """What carries loss, without special tokens."""
        kept = [i for i, is_target in zip(ids, targets, strict=True) if is_target]
        return self._decode(kept)

    def _check_complete(
        self, conversation: Conversation, ids: list[int], targets: list[bool]
    ) -> None:
        learned = self.learned_text(ids, targets)
        if not learned.strip():
            raise ConfigError("the chat template writes nothing of what the assistant says")
        for number, message in enumerate(conversation.messages, 1):
            for call in message.get("tool_calls", ()):
                if message["role"] == "assistant" and not _has(learned, call["function"]["name"]):
                    raise ConfigError(
                        f"message {number} calls {call['function']['name']}, which the chat "
                        "template does not write. Set data.chat_template=<a jinja file> that does"
                    )
        if conversation.tools and not self._warned_of_tools:
            self._warn_of_tools(conversation.tools, self._decode(ids))

    def _warn_of_tools(self, tools: list[Any], text: str) -> None:
        """Warns once, where the conversation's text does not name a tool that it offers."""
        schemas = [one.get("function", one) for one in tools if isinstance(one, dict)]
        missing = [name for one in schemas if not _has(text, name := str(one.get("name")))]
        if missing:
            self._warned_of_tools = True
            log.warning(
                "the chat template does not write the column `tools`, such as %s; the models do "
                "not read it",
                missing[0],
            )

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
        if not spans:
            raise ConfigError("the chat template marks no text as the assistant's")
        return ids, spans

    def _from_diffs(self, conversation: Conversation) -> tuple[list[int], list[Span]]:
        """Token ids and the assistant's spans, from what each turn adds."""
        ids = self._ids(conversation)
        messages, tools = conversation
        spans = []
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, turn = Conversation(messages[:k], tools), Conversation(messages[: k + 1], tools)
            prompt, with_turn = self._ids(before, add_generation_prompt=True), self._ids(turn)
            if ids[: len(with_turn)] != with_turn:
                raise ConfigError(
                    f"the chat template writes message {k + 1} otherwise once others follow it, "
                    f"so that its tokens cannot be identified. {REMEDY}"
                )
            if with_turn[: len(prompt)] != prompt:
                raise ConfigError(
                    f"by the chat template, message {k + 1} does not begin with the prompt that "
                    f"asks for it, so that its tokens cannot be identified. {REMEDY}"
                )
            if prompt == self._ids(before):
                self._check_no_header(turn)
            spans.append((len(prompt), len(with_turn)))
        return ids, spans

    def _check_no_header(self, conversation: Conversation) -> None:
        """Raises ConfigError where a template without a generation prompt adds a header to an
        assistant's turn."""
        messages, tools = conversation
        before = self._render(Conversation(messages[:-1], tools), tokenize=False)
        turn = self._render(conversation, tokenize=False)[len(before) :]
        if not turn.lstrip().startswith((messages[-1].get("content") or "").strip()):
            raise ConfigError(
                "the chat template has no prompt for the assistant (add_generation_prompt), so "
                f"that a turn's header cannot be told from its text. {REMEDY}"
            )

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

    def _ids(self, conversation: Conversation, **options: Any) -> list[int]:
        ids: list[int] = self._render(conversation, return_dict=True, **options)["input_ids"]
        return ids

    def _render(self, conversation: Conversation, **options: Any) -> Any:
        messages, tools = conversation
        try:
            return self.tokenizer.apply_chat_template(messages, tools, **options)
        except FAILURES as error:
            raise ConfigError(f"the chat template fails: {' '.join(str(error).split())}") from error


def _has(text: str, name: str) -> bool:
    """Whether the text has the name, but for spaces and case, which a tokenizer may change."""
    return "".join(name.split()).casefold() in "".join(text.split()).casefold()
