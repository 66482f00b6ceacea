"""The chat template that formats conversations: a file's, the tokenizer's, or that of ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_distill.data.sources.base import Message
from lightning_distill.errors import ConfigError

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


def prompt_ids(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Any] | None = None,
    template: str | None = None,
) -> list[int]:
    """The tokens that an assistant reads before it answers. Raises what the template raises.

    template: None for the tokenizer's.
    """
    encoding = tokenizer.apply_chat_template(
        list(messages),
        tools=tools,
        chat_template=template,
        add_generation_prompt=True,
        return_dict=True,
        tokenizer_kwargs={"verbose": False},  # of more tokens than a model has positions
    )
    ids: list[int] = encoding["input_ids"]
    return ids


def template_of(tokenizer: PreTrainedTokenizerBase, file: str | None, is_own: bool) -> str:
    """The template in the file, else that of the tokenizer. is_own: it was trained here.

    file: or the name of one of the tokenizer's templates. Raises ConfigError where there is none.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if file in named:
        return str(named[file])
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
        has = f"no chat template but {', '.join(named)}" if named else "no chat template"
        raise ConfigError(
            f"The tokenizer of {tokenizer.name_or_path} has {has}. Set "
            f"data.chat_template=<{'one of these, or ' * bool(named)}a jinja file>."
        ) from error
