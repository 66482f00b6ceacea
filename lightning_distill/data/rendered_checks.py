"""Checks of a formatted conversation: no text forges a control token, and none is left out."""

import json
import logging
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_distill.data.sources.base import Conversation, Message
from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

SHORT = 40  # characters of a text that are looked for
NAMES = {"role", "content", "tool_calls", "name", "id"}  # of a message that need not be written


class RenderedChecks:
    """Checks of one tokenizer's conversations. What is left out is warned of once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        self.control = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._warned: set[str] = set()

    def check_controls(self, conversation: Conversation) -> None:
        """Raises ConfigError for text that the tokenizer would read as a control token."""
        for number, message in enumerate(conversation.messages, 1):
            if match := self.control.search(_strings(message)):
                raise ConfigError(
                    f"message {number} holds {match[0]!r}, which the tokenizer reads as a control "
                    "token"
                )
        if match := self.control.search(_strings(conversation.tools)):
            raise ConfigError(
                f"tools holds {match[0]!r}, which the tokenizer reads as a control token"
            )

    def check_complete(self, conversation: Conversation, text: str, learned: str) -> None:
        """text: of all tokens, which is read where there are tools. learned: of those with loss.

        Raises ConfigError where the template leaves out what the assistant says or calls.
        """
        text, learned = _plain(text), _plain(learned)
        if not learned:
            raise ConfigError("the chat template writes nothing of what the assistant says")
        for number, message in enumerate(conversation.messages, 1):
            if message["role"] == "assistant":
                self._check_message(number, message, learned)
        for tool in conversation.tools or ():
            name = tool.get("function", tool).get("name") if isinstance(tool, dict) else None
            if name and _plain(str(name)) not in text:
                self._warn("the column `tools`", str(name), "read")

    def _check_message(self, number: int, message: Message, learned: str) -> None:
        """learned: as `_plain` returns it."""
        for call in message.get("tool_calls", ()):
            if _plain(call["function"]["name"]) not in learned:
                raise ConfigError(
                    f"message {number} calls {call['function']['name']}, which the chat template "
                    "does not write. Set data.chat_template=<a jinja file> that does"
                )
        for key in message.keys() - NAMES:  # reasoning_content, for one
            value = message[key]
            if isinstance(value, str) and _plain(value.strip()[:SHORT]) not in learned:
                self._warn(f"{key} of the assistant's messages", value.strip()[:SHORT], "learn")

    def _warn(self, what: str, example: str, verb: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning(
                "data: the chat template does not write %s, such as %r; models do not %s it",
                *(what, example, verb),
            )


def _strings(value: Any) -> str:
    """All texts in a message or a schema."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(text: str) -> str:
    """Without spaces and case, which a tokenizer may change."""
    return "".join(text.split()).casefold()
