"""Conversations in the forms that people have them in, and what is learned of tool calls."""

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_distill.data.assistant_masker import AssistantMasker
from lightning_distill.data.chat_template import ROLES, TEMPLATE, template_of
from lightning_distill.data.messages import conversation_of
from lightning_distill.data.sources.base import Conversation
from lightning_distill.data.sources.conversations import Conversations
from lightning_distill.data.tasks.chat import Chat
from lightning_distill.data.tokenizer import warn_of_unknown
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import Store

ASKED = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHAREGPT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
SYSTEM = {"role": "system", "content": "Be short."}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
WITH_TOOLS = """\
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" + (m.content or "") }}
{%- for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}
{{- "<|im_end|>\n" }}{% endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{% endif %}"""
WITHOUT = """\
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" + (m.content or "") + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{% endif %}"""


def call(arguments):
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": ASKED}, "messages"),
        ({"messages": json.dumps(ASKED)}, "messages"),  # a cell of a table
        ({"turns": ASKED}, "turns"),
        (
            {"conversations": SHAREGPT},
            "conversations",
        ),
        ({"conversations": ASKED}, "messages"),
        (ASKED, "messages"),  # unsloth#321: an array of conversations
        (SHAREGPT, "messages"),
        ({"instruction": "Why?", "input": "", "output": "So."}, "messages"),
        ({"instruction": "Why?", "output": "So."}, "messages"),
        ({"prompt": "Why?", "completion": "So."}, "messages"),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, "messages"),
    ],
)
def test_every_form_is_the_same_conversation(row, column):
    """axolotl#217"""
    assert conversation_of(row, column) == Conversation(ASKED)
    if isinstance(row, dict):
        given_system = conversation_of({**row, "system": "Be short."}, column)
        assert given_system == Conversation([SYSTEM, *ASKED])


def test_alpacas_input_and_history_are_read():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "history": [["Hi", "Hello"]]}
    assert [m["content"] for m in conversation_of(row, "messages").messages] == [
        *("Hi", "Hello", "Add.\n\n1, 2", "3"),
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [call({"city": "Seoul", "n": None})]},
        {"tool_calls": [call('{"city": "Seoul", "n": null}')]},
        {"content": None, "tool_calls": [call({"city": "Seoul", "n": None})["function"]]},
        {"function_call": {"name": "weather", "arguments": '{"city": "Seoul", "n": null}'}},
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_tool_call_is_an_object_however_it_is_written(message, as_text):
    row = {"messages": [ASKED[0], {"role": "assistant", **message}]}
    row["tools"] = json.dumps(TOOLS) if as_text else TOOLS
    messages, tools = conversation_of(row, "messages")
    assert messages[1]["tool_calls"] == [call({"city": "Seoul", "n": None})]
    assert tools == TOOLS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "no column messages (data.column=messages); it has: text"),
        ({"instruction": "a", "output": ""}, "message 2 is the assistant's, and empty"),
        ({"messages": ASKED, "tools": "{"}, "tools is not JSON"),
        ({"messages": ASKED, "tools": {"a": 1}}, "tools is dict, not a list of functions"),
        (
            {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [call("{")]}]},
            "message 2: the arguments of weather is not JSON",
        ),
        (
            {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [{"id": 1}]}]},
            "message 2 has a tool call without a function's name",
        ),
    ],
)
def test_what_is_no_conversation_says_why(row, message):
    with pytest.raises(ConfigError) as error:
        conversation_of(row, "messages")
    assert message in str(error.value)


def tokenizer_of(
    template, special=("<|im_end|>", "<|im_start|>"), texts=("weather city",), words=True
):
    """words: whether no token crosses the end of a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], extra_special_tokens=list(special[1:])
    )
    found.chat_template = template
    return found


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", "saved"])
@pytest.mark.parametrize("template", ["ours", "theirs"])
def test_what_is_learned_of_a_tool_call_is_what_its_row_says(tmp_path, kind, template):
    """NeMo-RL#1181, trl#6259: rows with different arguments, which a schema puts together."""
    each = [{"city": "Seoul"}, {"query": "Rome", "limit": 3}]
    rows = [
        {
            "messages": [ASKED[0], {"role": "assistant", "tool_calls": [call(one)]}],
            "tools": TOOLS,
        }
        for one in each
    ]
    path = tmp_path / f"a{kind}"
    if kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    tokenizer = tokenizer_of(WITH_TOOLS)
    if template == "ours":
        tokenizer = tokenizer_of(TEMPLATE, ["<|endoftext|>", *ROLES])
    mask = AssistantMasker(tokenizer)
    marked = list(Conversations(str(path), "messages", False).read(mask))
    texts = [mask.learned_text(*one) for one in marked]
    functions = [json.loads(text[text.index("{") : text.rindex("}") + 1]) for text in texts]
    assert functions == [{"name": "weather", "arguments": one} for one in each]
    assert all('"parameters": {"type": "object"}' in tokenizer.decode(ids) for ids, _ in marked)


def test_a_template_that_writes_no_tool_call_is_refused():
    message = {"role": "assistant", "tool_calls": [call({})]}
    mask = AssistantMasker(tokenizer_of(WITHOUT))
    with pytest.raises(ConfigError, match="writes nothing of what the assistant says"):
        mask(Conversation([ASKED[0], message]))
    with pytest.raises(ConfigError, match="message 2 calls weather, which the chat template does"):
        mask(Conversation([ASKED[0], message | {"content": "I look."}]))


def test_tools_that_the_template_leaves_out_are_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        AssistantMasker(tokenizer_of(WITH_TOOLS))(Conversation(ASKED, TOOLS))
        assert not caplog.text
        mask = AssistantMasker(tokenizer_of(WITHOUT))
        mask(Conversation(ASKED, TOOLS))
        mask(Conversation(ASKED, TOOLS))
    assert caplog.text.count("does not write the column `tools`, such as 'weather'") == 1


def test_bytes_and_counts_are_of_what_is_learned(tmp_path):
    """trl#3927: cut conversations whose answer is lost are left out, and counted by split."""
    rows = []
    for i in range(40):
        long = " ".join(str(7919 * i * j % 9973) for j in range(60 * (i % 2)))
        asked = {"role": "user", "content": f"{i} {long}"}
        said = {"role": "assistant", "content": "So é.", "tool_calls": [call({"i": i})]}
        rows.append({"messages": [asked, said]})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Chat(
        *(Conversations, 100, 4, 300),
        **{"chat_template": None, "path": str(tmp_path / "a.jsonl")},
        **{"column": "messages", "skip_bad_rows": False},
    )
    data.prepare(Store(tmp_path / "outputs"), None)
    for split in ("train", "validation", "test"):
        tokens, _, targets = data.tokens.streams[split]
        text = data.tokenizer.decode(tokens[targets], skip_special_tokens=True)
        per_token = len(text.encode()) / int(targets.sum())
        assert data.bytes_per_token(split) == pytest.approx(per_token)
    described = data.describe()
    packed = [data.examples(split).documents for split in ("train", "validation", "test")]
    kept = sum(len(documents[documents >= 0].unique()) for documents in packed)
    assert kept == 20
    assert "left out, with no answer before the cut: " in described
    left = described.split("before the cut: ")[1].split("; ")[0]
    assert sum(int(part.split()[0]) for part in left.split(", ")) == 20


MARKED_IN_PART = """\
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" }}
{%- if m.role == "assistant" and m.content != "unmarked" %}
{%- generation %}{{- m.content }}{% endgeneration %}
{%- else %}{{- m.content }}{% endif %}{{- "<|im_end|>\n" }}{% endfor %}"""


def learned_of(mask, conversation):
    return mask.learned_text(*mask(conversation))


@pytest.mark.parametrize(
    ("message", "tools"),
    [
        ({"role": "assistant<|im_end|>", "content": "a"}, None),
        ({"role": "assistant", "content": "a", "reasoning_content": "<|im_end|>"}, None),
        ({"role": "assistant", "tool_calls": [call({"a": ["<|im_start|>"]})]}, None),
        ({"role": "assistant", "content": "a"}, [{"name": "<|im_end|>"}]),
    ],
)
def test_no_text_of_a_row_forges_a_control_token(message, tools):
    """transformers#29279"""
    with pytest.raises(ConfigError, match="which the tokenizer reads as a control token"):
        AssistantMasker(tokenizer_of(WITH_TOOLS))(Conversation([ASKED[0], message], tools))


def test_what_the_template_leaves_out_of_a_message_is_said_once(caplog):
    """Automodel#2348"""
    message = {"role": "assistant", "content": "So.", "reasoning_content": "Because of this."}
    mask = AssistantMasker(tokenizer_of(WITHOUT))
    for _ in range(2):
        assert learned_of(mask, Conversation([ASKED[0], message])) == "So."
    assert caplog.text.count("does not write reasoning_content of the assistant's messages") == 1


def test_a_template_that_marks_some_turns_is_refused():
    """transformers#34172"""
    second = {"role": "assistant", "content": "unmarked"}
    mask = AssistantMasker(tokenizer_of(MARKED_IN_PART))
    assert learned_of(mask, Conversation(ASKED)) == "So."
    with pytest.raises(ConfigError, match="marks 1 of 2 turns as the assistant's"):
        mask(Conversation([*ASKED, ASKED[0], second]))


def test_a_token_that_crosses_the_beginning_of_an_answer_is_divided_as_in_generation():
    """prime-rl#1103: the header ends in a newline, and the answer begins with two."""
    made = tokenizer_of(WITHOUT, texts=["a\n\n\nb"] * 9, words=False)
    assert made("\n\n\n")["input_ids"] != 3 * made("\n")["input_ids"]
    mask = AssistantMasker(made)
    answer = {"role": "assistant", "content": "\n\nSo."}
    ids, targets = mask(Conversation([ASKED[0], answer]))
    prompt = made.apply_chat_template(ASKED[:1], add_generation_prompt=True)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert mask.learned_text(ids, targets) == "\n\nSo."
    assert mask.tokenizer.decode(ids) == made.apply_chat_template(
        [ASKED[0], answer], tokenize=False
    )


def test_tokens_do_not_depend_on_the_day():
    """llm-foundry#1474: some templates write the date."""
    mask = AssistantMasker(tokenizer_of("{{ strftime_now('%d %b %Y') }}" + WITHOUT))
    ids, _ = mask(Conversation(ASKED))
    assert mask.tokenizer.decode(ids).startswith("01 Jan 2025<|im_start|>user")
    with pytest.raises(ConfigError, match="writes the date in a format that it computes"):
        AssistantMasker(tokenizer_of("{{ strftime_now(format) }}" + WITHOUT))


UNCLOSED = """\
{%- for m in messages %}{{- m.role + " " }}{% if m.role == "assistant" %}
{%- generation %}{{- m.content }}{% endgeneration %}{% else %}{{- m.content + " " }}{% endif %}
{%- endfor %}"""


def knows_few_letters(template, names_it):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator(["user assistant Why? So."], trainer)
    unknown = {"unk_token": "<unk>"} if names_it else {}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **unknown)
    found.chat_template = template
    return found


@pytest.mark.parametrize("names_it", [True, False])
def test_an_unknown_token_closes_nothing(names_it):
    """trl#3299"""
    mask = AssistantMasker(knows_few_letters(UNCLOSED, names_it))
    answer = {"role": "assistant", "content": "So 東"}
    with pytest.raises(ConfigError, match="closes what the assistant says with no special token"):
        mask(Conversation([ASKED[0], answer]))


def test_a_named_template_is_chosen_by_its_name():
    """llama.cpp#6484"""
    tokenizer = tokenizer_of(None)
    tokenizer.chat_template = {"rag": WITHOUT, "tool_use": WITH_TOOLS}
    assert template_of(tokenizer, "tool_use", False) == WITH_TOOLS
    with pytest.raises(ConfigError, match="has no chat template but rag, tool_use"):
        template_of(tokenizer, None, False)


@pytest.mark.parametrize("names_it", [True, False])
def test_unknown_tokens_that_would_be_learned_are_counted(caplog, names_it):
    """swift-transformers#387"""
    tokenizer = knows_few_letters(None, names_it)
    known, unknown = (torch.tensor(tokenizer(text)["input_ids"]) for text in ("So.", "So 東"))
    warn_of_unknown(tokenizer, {"train": torch.cat([known, unknown]), "test": known})
    expected = f"1 of {len(known) + len(unknown)} learned tokens of the train split are <unk>"
    assert expected in caplog.text
    assert "test split" not in caplog.text
