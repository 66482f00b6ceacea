"""The check of a conversation's messages."""

from typing import Any

from lightning_distill.data.sources.base import Message
from lightning_distill.errors import ConfigError


def check_messages(value: Any) -> list[Message]:
    """A row's conversation, without empty keys and with text parts joined.

    Raises ConfigError where it is no list of messages, or has nothing of an assistant to learn.
    """
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else f"{type(value).__name__}, not a list of messages"
        raise ConfigError(f"the conversation is {found}")
    messages = [_message(number, one) for number, one in enumerate(value, 1)]
    asked = False
    for number, message in enumerate(messages, 1):
        if message["role"] != "assistant":
            asked = asked or message["role"] != "system"
        elif not asked:
            raise ConfigError(f"message {number} is the assistant's, and follows no other message")
        elif not message.get("content", "").strip() and not message.get("tool_calls"):
            raise ConfigError(f"message {number} is the assistant's, and empty")
    if "assistant" not in {message["role"] for message in messages}:
        raise ConfigError("no message is the assistant's")
    return messages


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ConfigError(f"message {number} is {type(value).__name__}, not {{role, content}}")
    # Parquet gives every message all keys, with None for those that it lacks.
    message = {key: x for key, x in value.items() if x is not None}
    if not isinstance(message.get("role"), str) or not {"content", "tool_calls"} & set(message):
        raise ConfigError(f"message {number} has no role and content; it has: {', '.join(value)}")
    if isinstance(content := message.get("content", ""), list):  # the parts of a multimodal message
        if any(not isinstance(part, dict) or "text" not in part for part in content):
            raise ConfigError(f"message {number} has parts that are not text")
        message["content"] = content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str):
        raise ConfigError(f"message {number} has {type(content).__name__} for its content")
    return message
