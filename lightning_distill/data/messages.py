"""Conversations as people write them: OpenAI's messages, ShareGPT's, Alpaca's, prompts with
completions."""

import json
from typing import Any

from lightning_distill.data.sources.base import Conversation, Message
from lightning_distill.errors import ConfigError

MESSAGES = "messages"  # the default column; rows without it may be of another form
SPEAKERS = {  # ShareGPT's `from`
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


def conversation_of(row: Any, column: str) -> Conversation:
    """A row's messages and the tools that it offers.

    column: of the messages, {role, content} or ShareGPT's {from, value}. Where a row lacks the
    default one, it may have `conversations`; or `instruction`, `input`, `output`, `system` and
    `history` (Alpaca); or `prompt` and `completion` (TRL). Its `tools` are schemas of functions, as
    a list or as JSON text. A row may also be the list of messages itself, and lack the answer.
    Raises ConfigError where the row has none of these.
    """
    fields = row if isinstance(row, dict) else {column: row} if isinstance(row, list) else {}
    return Conversation(check_messages(_messages(fields, column)), _tools(fields.get("tools")))


def _messages(row: dict[str, Any], column: str) -> Any:
    if column in row:
        value = row[column]
    elif column == MESSAGES and "conversations" in row:
        value = row["conversations"]
    elif column == MESSAGES and "instruction" in row:
        value = _alpaca(row)
    elif column == MESSAGES and "prompt" in row:
        answer = row.get("completion")
        value = _turns(row["prompt"], "user")
        value = value if answer is None else value + _turns(answer, "assistant")
    else:
        present = ", ".join(map(str, row)) or "nothing"
        raise ConfigError(f"no column {column} (data.column={column}); it has: {present}")
    if isinstance(value, str) and value.lstrip().startswith("["):  # JSON in a table's cell
        value = _parsed(value, "the conversation")
    system = row.get("system")
    if isinstance(value, list) and isinstance(system, str) and system.strip():
        value = [{"role": "system", "content": system}, *value]
    return value


def _alpaca(row: dict[str, Any]) -> list[Message]:
    parts = [str(row[key]) for key in ("instruction", "input") if row.get(key)]
    answer = [row["output"]] if row.get("output") is not None else []
    exchanges = [*(row.get("history") or []), ["\n\n".join(parts), *answer]]
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=False)
    ]


def _turns(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        value = _parsed(value, "tools") if value.strip() else None
    if value is not None and not isinstance(value, list):
        raise ConfigError(f"tools is {type(value).__name__}, not a list of functions")
    return [_parsed(one, "tools") if isinstance(one, str) else one for one in value or ()] or None


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what} is not JSON ({error})") from error


def check_messages(value: Any) -> list[Message]:
    """A row's conversation, without empty keys and with text parts joined.

    Raises ConfigError where it is no list of messages, or an answer follows nothing or is empty.
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
    return messages


def check_answered(conversation: Conversation) -> None:
    """Raises ConfigError where there is nothing of an assistant to learn."""
    if "assistant" not in {message["role"] for message in conversation.messages}:
        raise ConfigError(
            "no message is the assistant's; with data.answers=teacher, the teacher answers"
        )


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ConfigError(f"message {number} is {type(value).__name__}, not {{role, content}}")
    message = {key: x for key, x in value.items() if x is not None}
    if "role" not in message and {"from", "value"} <= set(message):
        message = _from_sharegpt(message)
    if isinstance(call := message.pop("function_call", None), dict):  # OpenAI's, before tools
        message["tool_calls"] = [{"type": "function", "function": call}]
    if not isinstance(message.get("role"), str) or not {"content", "tool_calls"} & set(message):
        raise ConfigError(f"message {number} has no role and content; it has: {', '.join(value)}")
    if isinstance(content := message.get("content", ""), list):  # the parts of a multimodal message
        if any(not isinstance(part, dict) or "text" not in part for part in content):
            raise ConfigError(f"message {number} has parts that are not text")
        message["content"] = content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str):
        raise ConfigError(f"message {number} has {type(content).__name__} for its content")
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = [_tool_call(number, call) for call in calls]
    return message


def _from_sharegpt(message: Message) -> Message:
    speaker = str(message["from"])
    if speaker == "function_call":
        call = _parsed(str(message["value"]), "a function_call")
        calls = call if isinstance(call, list) else [call]
        return {"role": "assistant", "tool_calls": calls}
    return {"role": SPEAKERS.get(speaker, speaker), "content": message["value"]}


def _tool_call(number: int, call: Any) -> dict[str, Any]:
    """OpenAI's form, with the arguments as an object, which chat templates write as JSON."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConfigError(f"message {number} has a tool call without a function's name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"message {number}: the arguments of {function['name']}")
    named = {"name": function["name"], "arguments": arguments}
    rest = {} if function is call else {k: v for k, v in call.items() if k != "function"}
    return {**rest, "type": "function", "function": named}
