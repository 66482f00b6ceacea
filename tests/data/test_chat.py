import json
import re
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lightning_distill.constants import IGNORED
from lightning_distill.data.assistant_masker import AssistantMasker
from lightning_distill.data.chat_template import ROLES, TEMPLATE
from lightning_distill.data.messages import check_messages
from lightning_distill.data.packing import run_starts, whole_documents
from lightning_distill.data.sources.base import Conversation
from lightning_distill.data.sources.conversations import Conversations
from lightning_distill.data.sources.python_chat import PythonChat
from lightning_distill.data.tasks.chat import Chat
from lightning_distill.errors import ConfigError
from lightning_distill.models import sizes
from lightning_distill.storage.artifacts import Store

SYSTEM = {"role": "system", "content": "Be short."}
ONE = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A soft target — 東京 🙂"},
]
TWO = [
    *ONE,
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "The teacher\n\nsays so.\n"},
    {"role": "user", "content": "Thanks!"},
]
TEXTS = [message["content"] for message in [SYSTEM, *TWO]] * 3

CHATML = """\
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{% endif %}"""
MARKED = """\
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" }}
{%- if m.role == "assistant" %}{% generation %}{{- m.content }}{% endgeneration %}
{%- else %}{{- m.content }}{% endif %}{{- "<|im_end|>\n" }}{% endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{% endif %}"""
LLAMA = """\
{{- bos_token }}{%- for m in messages %}
{{- "<|start_header_id|>" + m.role + "<|end_header_id|>\n\n" + m.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{% endif %}"""
MISTRAL = """\
{{- bos_token }}{%- for m in messages %}
{%- if (m.role == "user") != (loop.index0 % 2 == 0) %}
{{- raise_exception("roles must alternate user/assistant/user/...") }}{% endif %}
{%- if m.role == "user" %}{{- "[INST] " + m.content + " [/INST]" }}
{%- else %}{{- " " + m.content + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """\
{{- bos_token }}{%- for m in messages %}
{%- if m.role == "system" %}{{- raise_exception("System role not supported") }}{% endif %}
{{- "<start_of_turn>" + ("model" if m.role == "assistant" else m.role) + "\n" }}
{{- m.content | trim + "<end_of_turn>\n" }}{% endfor %}
{%- if add_generation_prompt %}{{- "<start_of_turn>model\n" }}{% endif %}"""

# template, special tokens (the first closes a text), whether a system message may come first, and
# what carries loss of TWO
FIRST, SECOND = ONE[1]["content"], TWO[3]["content"]
FAMILIES = {
    "chatml": (CHATML, ["<|im_end|>", "<|im_start|>"], True, "{}<|im_end|>"),
    "marked": (MARKED, ["<|im_end|>", "<|im_start|>"], True, "{}<|im_end|>"),
    "llama": (
        LLAMA,
        ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
        True,
        "{}<|eot_id|>",
    ),
    "mistral": (MISTRAL, ["</s>", "<s>", "[INST]", "[/INST]"], False, " {}</s>"),
    "gemma": (
        GEMMA,
        ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        False,
        "{}<end_of_turn>",
    ),
    "ours": (TEMPLATE, ["<|endoftext|>", *ROLES], True, "{}<|endoftext|>"),
}


def tokenizer_of(template, special, pieces=False):
    """A tiny one: of bytes, or of pieces of words with a mark for the space in front."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if pieces:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        alphabet = sorted(set("".join(TEXTS)) | set("usermodlatyINST \n[]/"))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[0],
        bos_token=special[1],
        extra_special_tokens=special[2:],
    )
    found.chat_template = template
    return found


def learned(turns, messages):
    """What carries loss, decoded, a string a run."""
    ids, targets = turns(Conversation(messages))
    runs, before = [], False
    for token, target in zip(ids, targets, strict=True):
        if target:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = target
    return [turns.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("pieces", [False, True], ids=["bytes", "pieces"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_carries_loss_is_what_the_assistant_says_and_the_token_that_closes_it(family, pieces):
    template, special, takes_system, closed = FAMILIES[family]
    turns = AssistantMasker(tokenizer_of(template, special, pieces))
    second = SECOND.strip() if "trim" in template else SECOND
    for messages in (TWO, [SYSTEM, *TWO]) if takes_system else (TWO,):
        assert learned(turns, messages) == [closed.format(FIRST), closed.format(second)]
        assert learned(turns, messages[:-3]) == [closed.format(FIRST)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_begins_where_the_model_will_be_asked_for_it(family):
    template, special, *_ = FAMILIES[family]
    turns = AssistantMasker(tokenizer_of(template, special))
    ids, targets = turns(Conversation(TWO))
    starts = run_starts(torch.tensor(targets)).tolist()
    for start, number in zip(starts, (1, 3), strict=True):
        asked = turns.tokenizer.apply_chat_template(TWO[:number], add_generation_prompt=True)
        assert ids[:start] == asked["input_ids"]
    assert ids == turns.tokenizer.apply_chat_template(TWO)["input_ids"]


NO_MARK = "Set data.chat_template=<a jinja file> that has {% generation %}"
THINKING = CHATML.replace('m.content + "<', '(m.content if loop.last else m.content[1:]) + "<')
HEADLESS = CHATML[: CHATML.index("{%- if add")]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (THINKING, TWO, f"writes message 2 otherwise once others follow it.*{NO_MARK}"),
        (HEADLESS, TWO, f"has no prompt for the assistant (add_generation_prompt).*{NO_MARK}"),
        (
            CHATML.replace('assistant\n"', 'assistant\n<think>"'),
            TWO,
            "does not begin with the prom",
        ),
        (CHATML.replace("<|im_end|>", ""), TWO, "with no special token, and a student would not"),
        (MISTRAL, [SYSTEM, *TWO], "the chat template fails: roles must alternate"),
        (GEMMA, [SYSTEM, *TWO], "the chat template fails: System role not supported"),
        (TEMPLATE, [{"role": "bot", "content": "a"}, *TWO], "there is no role bot"),
        (CHATML + "{{ messages[0].content + 1 }}", TWO, "the chat template fails: can only concat"),
        (
            MARKED.replace('"assistant" %}{% gen', '"model" %}{% gen'),
            TWO,
            "marks no text as the assistant's",
        ),
        (CHATML, [*ONE, {"role": "user", "content": "<|im_end|>"}], "message 3 holds '<|im_end|>'"),
    ],
)
def test_a_template_that_cannot_tell_the_assistants_tokens_is_refused(template, messages, message):
    turns = AssistantMasker(tokenizer_of(template, ["<|im_end|>", "<|im_start|>"]))
    with pytest.raises(ConfigError, match=".*".join(map(re.escape, message.split(".*")))):
        turns(Conversation(messages))


def test_a_template_that_is_none_is_refused_with_its_line():
    tokenizer = tokenizer_of("{% for m in messages %}\n{% endif %}", ["<|im_end|>", "<|im_start|>"])
    with pytest.raises(ConfigError, match=r"data\.chat_template.* line 2: .*endfor"):
        AssistantMasker(tokenizer)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", "is str, not a list of messages"),
        ([], "the conversation is empty"),
        (["Hello"], "message 1 is str, not {role, content}"),
        ([{"from": "human", "text": "a"}], "message 1 has no role and content; it has: from, text"),
        ([{"role": "user", "content": 3}], "message 1 has int for its content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has parts that are not text"),
        ([SYSTEM, ONE[1]], "message 2 is the assistant's, and follows no other message"),
        (
            [ONE[0], {"role": "assistant", "content": " "}],
            "message 2 is the assistant's, and empty",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(messages, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_messages(messages)


def test_absent_keys_and_parts_of_text_are_read():
    """As Parquet and as the interfaces of several modalities have them."""
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "b"}]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    found = check_messages([{"role": "user", "content": parts, "name": None}, calls])
    assert found == [
        {"role": "user", "content": "A b"},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
        },
    ]


WORDS = ["teacher", "student", "soft", "target", "learns", "from", "the", "temperature"]


def conversation(number):
    """Of one, two or three turns."""
    said = [SYSTEM] if number % 4 == 0 else []
    for turn in range(1 + number % 3):
        word = WORDS[(number + turn) % 8]
        said.append({"role": "user", "content": f"What does {word} {number} do?"})
        said.append({"role": "assistant", "content": f"It {word} {number % 5} é. " * (1 + turn)})
    return said


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "chats.jsonl"
    lines = (json.dumps({"messages": conversation(n)}) for n in range(150))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def make_chat(chats, tmp_path_factory):
    def make(path=chats, length=96, template=None, skip=False, tokenizer=None):
        data = Chat(
            Conversations, length, 4, 400, chat_template=template,
            path=str(path), column="messages", skip_bad_rows=skip,
        )  # fmt: skip
        data.prepare(Store(tmp_path_factory.getbasetemp() / "outputs"), tokenizer)
        return data

    return make


def each(blocks):
    return (blocks[n] for n in range(len(blocks)))


def runs_of(data, split):
    """What carries loss in the blocks of a split, and what is read before it; decoded."""
    found = []
    for block in each(data.examples(split)):
        known = block["labels"] != IGNORED
        for t in run_starts(known).tolist():
            stop = next((i for i in range(t, len(known)) if not known[i]), len(known))
            begin = t - int(block["position_ids"][t])
            texts = block["input_ids"][begin : t + 1], block["labels"][t:stop]
            found.append(tuple(data.tokenizer.decode(ids) for ids in texts))
    return found


def test_every_turn_is_learned_once_with_its_whole_conversation_before_it(make_chat):
    data, expected = make_chat(), []
    for number in range(150):
        messages, before = conversation(number), ""
        for message in messages:
            before += f"<|{message['role']}|>"
            if message["role"] == "assistant":
                expected.append((before, message["content"] + "<|endoftext|>"))
            before += message["content"] + "<|endoftext|>" * (message["role"] == "assistant")
    found = [run for split in ("train", "validation", "test") for run in runs_of(data, split)]
    assert sorted(found) == sorted(expected)
    assert "the next tokens" in data.check_labels()


def test_bytes_are_those_of_what_the_assistant_says(make_chat):
    data = make_chat()
    said = [text.removesuffix("<|endoftext|>") for _, text in runs_of(data, "test")]
    tokens = sum(int((b["labels"] != IGNORED).sum()) for b in each(data.examples("test")))
    assert data.bytes_per_token("test") == pytest.approx(len("".join(said).encode()) / tokens)


@pytest.mark.parametrize("family", ["ours", "chatml", "marked"])
def test_of_any_conversation_exactly_what_the_assistant_says_is_learned(family):
    template, special, _, closed = FAMILIES[family]
    turns = AssistantMasker(tokenizer_of(template, special))
    words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)
    said = words.filter(lambda text: text.strip() and not turns.checks.control.search(text))

    @given(st.lists(st.tuples(said, said), min_size=1, max_size=3), st.booleans())
    @settings(max_examples=25, deadline=None)
    def check(exchanges, unanswered):
        messages = [
            {"role": role, "content": text}
            for exchange in exchanges
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        ]
        messages += [{"role": "user", "content": "and now?"}] * unanswered
        assert learned(turns, messages) == [closed.format(answer) for _, answer in exchanges]

    check()


def test_of_what_a_model_completes_exactly_that_is_learned(make_data):
    data = make_data(sequence_length=16)
    parts = st.tuples(st.integers(1, 8), st.integers(1, 8))

    @given(st.lists(parts, min_size=1, max_size=5), st.integers(0, 999))
    @settings(max_examples=40, deadline=None)
    def check(sizes, seed):
        dice = torch.Generator().manual_seed(seed)
        given_ids = [torch.randint(300, (size,), generator=dice) for size, _ in sizes]
        new = [torch.randint(300, (size,), generator=dice).tolist() for _, size in sizes]
        batch = data.completion_batch(given_ids, new)
        for row, (begin, end) in enumerate(zip(given_ids, new, strict=True)):
            whole = [*begin.tolist(), *end]
            assert batch["input_ids"][row, : len(whole) - 1].tolist() == whole[:-1]
            kept = batch["labels"][row] != IGNORED
            assert kept.nonzero()[:, 0].tolist() == list(range(len(begin) - 1, len(whole) - 1))
            assert batch["labels"][row][kept].tolist() == end

    check()


def test_whole_documents_stay_whole_or_lose_their_end():
    documents = torch.tensor([0] * 3 + [1] * 6 + [2] * 2 + [3] * 4)
    targets = torch.arange(15) % 2 == 0
    targets[9:11] = False  # of document 2 nothing is to be learned
    tokens, where, kept = whole_documents(torch.arange(15), documents, targets, 5)
    assert where.tolist() == [0, 0, 0, -1, -1, 1, 1, 1, 1, 1, 3, 3, 3, 3, -1]
    assert tokens.tolist() == [0, 1, 2, 0, 0, 3, 4, 5, 6, 7, 11, 12, 13, 14, 0]
    assert kept.tolist() == [
        i >= 0 and bool(targets[t]) for i, t in zip(where, tokens, strict=True)
    ]


def test_a_long_conversation_is_cut_and_counted(make_chat):
    data = make_chat(length=40)
    counts = data.tokens.streams["train"].documents.unique(return_counts=True)[1]
    assert 0 < (counts > 40).sum() < len(counts)
    assert re.search(r"\d+ of them longer than data.sequence_length, and cut", data.describe())
    with pytest.raises(ConfigError, match="No conversation of the train split has text of the"):
        make_chat(length=4)


def test_a_model_is_asked_for_another_turn_of_a_block_in_each_round(make_chat):
    data = make_chat()
    block = data.examples("train")[1]
    batch = {name: torch.stack([x, x, x, x]) for name, x in block.items()}
    asked = data.prompt_tokens(batch | {"round": torch.arange(4)}, length=16)
    texts = [data.tokenizer.decode(ids) for ids in asked]
    assert all(text.endswith("<|assistant|>") for text in texts)
    assert all(text.startswith(("<|user|>", "<|system|>")) for text in texts)
    assert all(one != other for one, other in pairwise(texts))
    assert {text for text, _ in runs_of(data, "train")} >= set(texts)


def test_what_a_teacher_writes_is_learned_in_whole_conversations(make_chat):
    data = make_chat()
    prompts = [prompt for prompt, _ in data.test_turns]
    lines = [{"prompt_ids": p.tolist(), "ids": [300 + n, 0]} for n, p in enumerate(prompts)]
    blocks = data.from_generated(lines, data)
    learned = [i for b in each(blocks) for i in b["labels"].tolist() if i != IGNORED]
    assert sorted(learned) == sorted(i for line in lines for i in line["ids"])
    for block in each(blocks):
        for t in run_starts(block["labels"] != IGNORED).tolist():
            begin = t - int(block["position_ids"][t])
            number = int(block["labels"][t]) - 300
            assert block["input_ids"][begin : t + 1].tolist() == prompts[number].tolist()


def test_rouge_l_holds_answers_against_the_references(make_chat, monkeypatch):
    data = make_chat()
    references = {tuple(prompt.tolist()): said.tolist() for prompt, said in data.test_turns}

    def parrot(model, tokenizer, prompts, length, sampling, seed, stops):
        assert sampling.temperature == 0
        assert stops == [tokenizer.eos_token_id]
        return [references[tuple(prompt.tolist())][model:] for prompt in prompts]

    monkeypatch.setattr("lightning_distill.models.generation.generate", parrot)
    assert data.score_generation(0) == {"rouge_l": 1.0}
    assert 0 < data.score_generation(4)["rouge_l"] < 1


def test_the_student_stops_where_a_turn_does_and_has_the_template(make_chat, chats, tmp_path):
    """Also where the token that closes a turn is not the one that closes a text."""
    template, special, _, _ = FAMILIES["gemma"]
    path = tmp_path / "chats.jsonl"
    rows = ([m for m in conversation(n) if m["role"] != "system"] for n in range(150))
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    data = make_chat(path, length=400, tokenizer=tokenizer_of(template, special))
    assert data.stop_token_ids == [special.index("<end_of_turn>"), 0]
    model = sizes.decoder(sizes.Size(16, 1, 2, 512), data.tokenizer)
    data.save(model, tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert saved.generation_config.eos_token_id == data.stop_token_ids
    assert tokenizer.chat_template == template
    asked = tokenizer.apply_chat_template(ONE[:1], add_generation_prompt=True)
    assert tokenizer.decode(asked["input_ids"]).endswith("<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("template", "expected"), [(LLAMA, "<bos>"), (LLAMA.replace("{{- bos_token }}", ""), None)]
)
def test_the_template_may_write_the_beginning_of_text_token(make_chat, template, expected):
    special = ["<|eot_id|>", "<bos>", "<|start_header_id|>", "<|end_header_id|>"]
    data = make_chat(length=400, tokenizer=tokenizer_of(template, special))
    assert data.bos_token == expected
    assert (data.examples("train")[0]["input_ids"][0] == 1) == (expected is not None)


def test_a_pretrained_tokenizer_without_a_template_needs_a_file(make_chat, tmp_path):
    special = FAMILIES["chatml"][1]
    bare = lambda: tokenizer_of(None, special)  # noqa: E731
    with pytest.raises(ConfigError, match=r"has no chat template\. Set data\.chat_template=<a jin"):
        make_chat(tokenizer=bare())
    with pytest.raises(ConfigError, match=r"data\.chat_template=none\.jinja is no file"):
        make_chat(tokenizer=bare(), template="none.jinja")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    data = make_chat(tokenizer=bare(), template=str(tmp_path / "chatml.jinja"), length=300)
    assert all(text.endswith("<|im_end|>") for _, text in runs_of(data, "test"))
    other = make_chat(tokenizer=tokenizer_of(MARKED, special), length=300)
    assert other.artifact.key != data.artifact.key  # another template is another data set


def test_rows_of_any_kind_give_the_same_conversations(make_chat, chats, tmp_path):
    rows = Dataset.from_list([json.loads(line) for line in chats.read_text().splitlines()])
    rows.to_parquet(tmp_path / "chats.parquet")
    rows.save_to_disk(str(tmp_path / "saved"))
    expected = make_chat().examples("train").tokens.tolist()
    for path in (tmp_path / "chats.parquet", tmp_path / "saved"):
        assert make_chat(path).examples("train").tokens.tolist() == expected


def test_bad_rows_are_named_or_left_out_and_counted(make_chat, chats, tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    bad = [{"messages": [{"role": "bot", "content": "a"}, *ONE]}, {"messages": [ONE[0]]}]
    lines = chats.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], *map(json.dumps, bad), *lines[1:]]))
    with pytest.raises(
        ConfigError, match=r"line 3: no message is the assistant's;.*data\.skip_bad"
    ):
        make_chat(path)
    assert "skipped 2 of 152 rows" not in caplog.text
    data = make_chat(path, skip=True)
    assert "skipped 2 of 152 rows; the first: " in caplog.text
    assert "line 2: the chat template fails: there is no role bot" in caplog.text
    assert sorted(runs_of(data, "test")) == sorted(runs_of(make_chat(), "test"))


def test_a_row_that_the_template_refuses_is_named_and_exits_with_2(in_process, chats):
    """Every fourth conversation begins with a system message, which this template refuses."""
    own = ["data=chat", f"data.path={chats}", "trainer=cpu", "logger=none"]
    file = chats.parent / "gemma.jinja"
    file.write_text(GEMMA.replace("<end_of_turn>", "<|endoftext|>"))
    done = in_process(*own, f"data.chat_template={file}", tiny=False, expect=2)
    said = f"{chats}, line 1: the chat template fails: System role not supported. data.skip_bad_r"
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_two_tokenizers_are_refused(in_process, chats, tmp_path):
    for role, family in (("teacher", "chatml"), ("student", "llama")):
        tokenizer_of(*FAMILIES[family][:2]).save_pretrained(tmp_path / role)
    done = in_process(
        *("data=chat", f"data.path={chats}", "loss=universal", "trainer=cpu", "logger=none"),
        *(f"{role}=pretrained" for role in ("teacher", "student")),
        *(f"{role}.name={tmp_path / role}" for role in ("teacher", "student")),
        tiny=False,
        expect=2,
    )
    assert "have different vocabularies" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "transfer", [[], ["transfer=sequence"], ["transfer=on_policy", "transfer.student_fraction=1"]]
)
def test_an_assistant_is_distilled_by_every_transfer(in_process, chats, tmp_path, transfer):
    own = [
        *("data=chat", f"data.path={chats}", "data.sequence_length=96", "data.vocab_size=400"),
        *("student=xs", "student.hidden_size=16", "teacher=xs", "teacher.hidden_size=32"),
        *("teacher.max_steps=4", "student.max_steps=4", "trainer=cpu", "logger=none"),
        f"paths.outputs={tmp_path.parent / 'shared'}",
        f"hydra.run.dir={tmp_path}",
    ]
    in_process(*own, *transfer, tiny=False)
    results = json.loads((tmp_path / "results.json").read_text())
    for role in ("teacher", "student"):
        assert 0 <= results[role]["rouge_l"] <= 1
        assert 0 < results[role]["nll"] < 7
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert all(sample["prompt"].endswith("<|assistant|>") for sample in samples)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    ids = tokenizer.apply_chat_template(ONE[:1], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == "<|user|>What is it?<|assistant|>"


@pytest.fixture(scope="session")
def python_chats():
    return list(PythonChat().read(lambda one: one.messages))


@pytest.mark.slow
def test_the_embedded_conversations_give_each_answer_once_and_are_the_same_each_time(python_chats):
    assert python_chats == list(PythonChat().read(lambda one: check_messages(one.messages)))
    assert 3000 < len(python_chats) < 10_000
    said = [m["content"] for messages in python_chats for m in messages if m["role"] == "assistant"]
    answers = [text for text in said if " " in text and "(self" not in text]
    assert len(set(answers)) > 0.97 * len(answers)
    kinds = {tuple(m["role"][0] for m in messages) for messages in python_chats}
    assert kinds == {tuple("ua"), tuple("sua"), tuple("uaua"), tuple("suaua")}
