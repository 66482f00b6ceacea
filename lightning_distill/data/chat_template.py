"""Which tokens of a conversation are the assistant's, by the tokenizer's chat template.

A template with `{% generation %}` around what the assistant says tells it itself. Of any other,
the conversation is rendered up to each of the assistant's turns, with the prompt that asks for
it, and with the turn: what the second has more is the turn. That holds only where a template
writes the beginning of a conversation alike whatever follows; where it does not, the conversation
is refused.
"""

import re
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lightning_distill.errors import ConfigError

Message = dict[str, Any]

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")  # tokens of our own tokenizer

# Of our own tokenizer: the end-of-text token closes what the assistant says.
TEMPLATE = """\
{%- for message in messages %}
{%- if message.role not in ("system", "user", "assistant", "tool") %}
{{- raise_exception("there is no role " ~ message.role) }}
{%- endif %}
{{- "<|" ~ message.role ~ "|>" }}
{%- if message.role == "assistant" %}
{%- generation %}{{ message.content ~ eos_token }}{% endgeneration %}
{%- else %}
{{- message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|assistant|>" }}{% endif %}
"""

MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
FAILURES = (TemplateError, TypeError, ValueError, LookupError)  # templates are programs, and err
REMEDY = (
    "Set data.chat_template=<a jinja file> that has {% generation %} and {% endgeneration %} "
    "around what the assistant says"
)


class Turns:
    """Tokens of conversations, and which of them are to be learned: what the assistant says, and
    the token that closes it.

    Raises ConfigError if the tokenizer's template is not one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.has_markers = bool(MARKERS.search(tokenizer.get_chat_template()))
        if self.has_markers and not tokenizer.is_fast:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path} cannot tell the places of its tokens, "
                "which {% generation %} in its chat template needs. Bring its tokenizer.json."
            )
        special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.special = {tokenizer.eos_token_id, *special}
        self.control = re.compile("|".join(map(re.escape, special.values())) or r"(?!)")
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"data.chat_template, or the tokenizer's own, line {error.lineno}: {error.message}."
            ) from error
        except FAILURES:  # it may want more than this
            pass

    def __call__(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """The ids, and which of them carry loss.

        Raises ConfigError where the template fails, or does not tell the assistant's tokens.
        """
        for number, message in enumerate(messages, 1):
            if found := self.control.search(message.get("content") or ""):
                raise ConfigError(
                    f"message {number} holds {found[0]!r}, which the tokenizer reads as a control "
                    "token"
                )
        ids, spans = self._marked(messages) if self.has_markers else self._compared(messages)
        targets = [False] * len(ids)
        for start, stop in spans:
            stop = self._close(ids, start, stop)
            targets[start:stop] = [True] * (stop - start)
        return ids, targets

    def _marked(self, messages: list[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """By the template's own markers."""
        found = self._render(
            messages,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        ids, mask, places = found["input_ids"], found["assistant_masks"], found["offset_mapping"]
        spans, stop = [], 0
        while 1 in mask[stop:]:
            start = mask.index(1, stop)
            stop = mask.index(0, start) if 0 in mask[start:] else len(mask)
            # Of a character that is several tokens, the mask may have the first alone.
            while stop < len(ids) and places[stop][0] < places[stop - 1][1]:
                stop += 1
            spans.append((start, stop))
        if not spans:
            raise ConfigError("the chat template marks nothing as said by the assistant")
        return ids, spans

    def _compared(self, messages: list[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """By what each turn adds."""
        ids = self._ids(messages)
        spans = []
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._ids(messages[:k], add_generation_prompt=True)
            whole = self._ids(messages[: k + 1])
            if ids[: len(whole)] != whole:
                raise ConfigError(
                    f"the chat template writes message {k + 1} otherwise once others follow it, "
                    f"so that its tokens cannot be told. {REMEDY}"
                )
            if whole[: len(prompt)] != prompt:
                raise ConfigError(
                    f"by the chat template, message {k + 1} does not begin with the prompt that "
                    f"asks for it, so that its tokens cannot be told. {REMEDY}"
                )
            if prompt == self._ids(messages[:k]):
                self._check_no_header(messages[: k + 1])
            spans.append((len(prompt), len(whole)))
        return ids, spans

    def _check_no_header(self, messages: list[Message]) -> None:
        """Raises ConfigError where a template, which knows no generation prompt, puts anything in
        front of what the assistant says."""
        before = self._render(messages[:-1], tokenize=False)
        after = self._render(messages, tokenize=False)[len(before) :]
        if not after.lstrip().startswith((messages[-1].get("content") or "").strip()):
            raise ConfigError(
                "the chat template has no prompt for the assistant (add_generation_prompt), so "
                f"that a turn's header cannot be told from what is said. {REMEDY}"
            )

    def _close(self, ids: list[int], start: int, stop: int) -> int:
        """Where the turn's last token ends: the one that closes it, and no blank line behind."""
        special = [t for t in range(start, stop) if ids[t] in self.special]
        if special and not self.tokenizer.decode(ids[special[-1] + 1 : stop]).strip():
            return special[-1] + 1
        if self.has_markers and stop < len(ids) and ids[stop] in self.special:
            return stop + 1  # which the markers may leave out
        raise ConfigError(
            "the chat template closes what the assistant says with no special token, and a "
            "student would not learn to stop. Set data.chat_template=<a jinja file> that ends "
            "it with {{ eos_token }}"
        )

    def _ids(self, messages: list[Message], **how: Any) -> list[int]:
        found: list[int] = self._render(messages, return_dict=True, **how)["input_ids"]
        return found

    def _render(self, messages: list[Message], **how: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(messages, **how)
        except FAILURES as error:
            raise ConfigError(f"the chat template fails: {' '.join(str(error).split())}") from error


def check_messages(value: Any) -> list[Message]:
    """A row's conversation. Raises ConfigError where it is none that an assistant could learn."""
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else f"{type(value).__name__}, not a list of messages"
        raise ConfigError(f"the conversation is {found}")
    messages = [_message(number, one) for number, one in enumerate(value, 1)]
    asked = False
    for number, message in enumerate(messages, 1):
        if message["role"] != "assistant":
            asked = asked or message["role"] != "system"
        elif not asked:
            raise ConfigError(f"message {number} is the assistant's, and nobody has asked for it")
        elif not message.get("content", "").strip() and not message.get("tool_calls"):
            raise ConfigError(f"message {number} is the assistant's, and empty")
    if messages[-1]["role"] != "assistant" and "assistant" not in {m["role"] for m in messages}:
        raise ConfigError("no message is the assistant's")
    return messages


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ConfigError(f"message {number} is {type(value).__name__}, not {{role, content}}")
    found = {key: x for key, x in value.items() if x is not None}  # Parquet has every key in all
    if not isinstance(found.get("role"), str) or not {"content", "tool_calls"} & set(found):
        raise ConfigError(f"message {number} has no role and content; it has: {', '.join(value)}")
    if isinstance(content := found.get("content", ""), list):  # parts, as of several modalities
        if any(not isinstance(part, dict) or "text" not in part for part in content):
            raise ConfigError(f"message {number} has parts that are not text")
        found["content"] = content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str):
        raise ConfigError(f"message {number} has {type(content).__name__} for its content")
    return found
