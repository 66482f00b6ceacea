"""`stage=chat` says what transformers' own template and generation say, turn by turn."""

import io
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import unicodedata

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lightning_distill.chat.speakers import ChatSettings, TextStream, speaker
from lightning_distill.chat.terminal import Screen
from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.models.generation import Sampling

NEW = 12  # chat.max_new_tokens
QUESTIONS = ["Hi", "Who are you?", "And what do you do?"]
WORDS = ["teacher", "student", "soft", "target", "learns", "from", "the", "temperature"]
TEXTS = [" ".join(WORDS[(n + k) % 8] for k in range(4 + n % 9)) for n in range(150)]
CHATML = """\
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{% endif %}"""
TINY = [
    *("student=xs", "teacher=xs", "student.hidden_size=16", "teacher.hidden_size=32"),
    *("student.max_steps=2", "teacher.max_steps=2", "data.vocab_size=300", "trainer=cpu"),
    "logger=none",
]


def randomize(model, folder):
    """Saves the model with random weights, with which each answer depends on all that was read."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)


def replace_model(folder, positions=2048, stops=()):
    """Replaces a saved model by one with random weights, and more rows than there are tokens."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 100,
        intermediate_size=48,
        max_position_embeddings=positions,
        **size,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *stops]
    randomize(model, folder)


@pytest.fixture(scope="module")
def make_run(in_process, tmp_path_factory):
    """Makes a finished run in `<root>/<name>`; the artifacts of all are in `<root>/outputs`."""
    root = tmp_path_factory.mktemp("runs")

    def make(name, rows, *overrides):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = (f"paths.outputs={root / 'outputs'}", f"hydra.run.dir={root / name}")
        in_process(f"data.path={root / name}.jsonl", *where, *overrides, tiny=False)
        return root / name

    return make


@pytest.fixture(scope="module")
def trained_assistant(make_run):
    rows = [{"messages": [message("user", t), message("assistant", t[::-1])]} for t in TEXTS]
    return make_run("assistant", rows, *TINY, "data=chat", "data.sequence_length=96")


@pytest.fixture
def assistant(trained_assistant, tmp_path):
    """A run whose student has a chat template, with random weights."""
    shutil.copytree(trained_assistant, tmp_path / "run")
    replace_model(tmp_path / "run" / "student")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def translator(make_run):
    rows = [{"source": text, "target": text[::-1]} for text in TEXTS]
    run = make_run("translator", rows, *TINY, "data=translation", "data.sequence_length=64")
    torch.manual_seed(0)
    randomize(AutoModelForSeq2SeqLM.from_pretrained(run / "student"), run / "student")
    return run


@pytest.fixture(scope="module")
def continuer(make_run, tmp_path_factory):
    """A run whose student has no chat template, and whose teacher has, with another tokenizer."""
    root, overrides = tmp_path_factory.mktemp("pretrained"), []
    for role, special in (("teacher", ["<|im_end|>", "<|im_start|>"]), ("student", [])):
        tokenizer = train_tokenizer(TEXTS, 300 + len(special), special)
        tokenizer.chat_template = CHATML if special else None
        tokenizer.save_pretrained(root / role)
        replace_model(root / role)
        overrides += [f"{role}=pretrained", f"{role}.name={root / role}"]
    more = ("data=text", "data.sequence_length=32", "loss=universal", "student.max_steps=1")
    rows = [{"text": text} for text in TEXTS]
    return make_run("continuer", rows, *overrides, *more, "trainer=cpu", "logger=none")


def message(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def chat(in_process, monkeypatch, tmp_path):
    """Types the lines; returns what is printed, without the introduction."""

    def chat(run, typed, *overrides, expect=0, outputs=None):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        stage = ("stage=chat", f"chat.run={run}", f"chat.max_new_tokens={NEW}", "trainer=cpu")
        where = ("logger=none", f"paths.outputs={outputs or tmp_path / 'outputs'}")
        done = in_process(*stage, *where, *overrides, tiny=False, expect=expect)
        if expect:
            return done.stderr.strip()
        return done.stdout.partition("Ctrl-D ends it.\n")[2]

    return chat


def shown(text):
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def reference(folder, max_new_tokens=NEW):
    """Answers a conversation, with transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    unused = list(range(len(tokenizer), model.config.vocab_size)) or None

    def answer(messages):
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        new = {"max_new_tokens": max_new_tokens, "suppress_tokens": unused}
        out = model.generate(**asked, **new, do_sample=False)
        return tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def transcript(answer, questions, before=(), role="student"):
    messages, text = list(before), ""
    for question in questions:
        messages.append(message("user", question))
        messages.append(message("assistant", answer(messages)))
        text += f"you: {question}\n{role}: {shown(messages[-1]['content'])}\n"
    return text


def test_three_turns_are_those_of_transformers(assistant, chat):
    answer = reference(assistant / "student")
    expected = transcript(answer, QUESTIONS)
    assert chat(assistant, QUESTIONS) == expected
    alone = "".join(transcript(answer, [question]) for question in QUESTIONS)
    assert expected != alone  # the history is part of what is read


def test_the_system_message_begins_the_conversation(assistant, chat):
    answer = reference(assistant / "student")
    system = [message("system", "Be short, please.")]
    expected = transcript(answer, QUESTIONS, system)
    assert chat(assistant, QUESTIONS, "chat.system='Be short, please.'") == expected
    assert expected != transcript(answer, QUESTIONS)


def test_an_answer_ends_with_each_stop_of_the_student(assistant, chat):
    answer = reference(assistant / "student")([message("user", "Hi")])
    tokenizer = AutoTokenizer.from_pretrained(assistant / "student")
    replace_model(assistant / "student", stops=[tokenizer(answer)["input_ids"][3]])
    expected = transcript(reference(assistant / "student"), QUESTIONS)
    assert chat(assistant, QUESTIONS) == expected
    assert not expected.startswith(f"you: Hi\nstudent: {shown(answer)}")


def test_a_long_conversation_is_cut_from_its_oldest_turns(assistant, chat):
    """The first three turns fill the positions exactly."""
    system, forgotten, lengths = [message("system", "Be short.")], [], []
    answer, limit = reference(assistant / "student"), 10**6
    tokenizer = AutoTokenizer.from_pretrained(assistant / "student")

    def answer_cut(messages):
        while (length := prompt_length(tokenizer, messages) + NEW) > limit:
            forgotten.append(messages[1:3])
            del messages[1:3]
        lengths.append(length)
        return answer(messages)

    transcript(answer_cut, QUESTIONS, system)
    limit = lengths[-1]
    expected = transcript(answer_cut, QUESTIONS * 3, system)
    replace_model(assistant / "student", positions=limit)
    printed = chat(assistant, QUESTIONS * 3, "chat.system='Be short.'").splitlines(keepends=True)
    notes = [line for line in printed if line.startswith("student: forgets its oldest turns (")]
    assert "".join(line for line in printed if line not in notes) == expected
    assert sum(int(note.split("(")[1][0]) for note in notes) == len(forgotten) > 2
    assert notes[0].endswith(f"), with {limit} positions\n")


def prompt_length(tokenizer, messages):
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return len(asked["input_ids"])


def test_a_text_without_room_for_an_answer_is_left_out(assistant, chat):
    replace_model(assistant / "student", positions=80)
    expected = transcript(reference(assistant / "student"), QUESTIONS[:2])
    first, second = (f"you: {line}" for line in expected.split("you: ")[1:])
    long = "x " * 80
    printed = chat(assistant, [QUESTIONS[0], long, QUESTIONS[1]])
    assert printed.startswith(first)
    assert printed.endswith(second)
    assert "student: no answer to 162 tokens, with 80 positions\n" in printed


def test_nothing_else_is_printed(assistant, trained_assistant, in_process, monkeypatch, caplog):
    file = assistant / "student" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 8}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nWho are you?\n"))
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    outputs = f"paths.outputs={trained_assistant.parent / 'outputs'}"
    stage = ("stage=chat", f"chat.run={assistant}", "chat.compare=true")
    done = in_process(*stage, outputs, "trainer=cpu", "logger=none", tiny=False)
    lines = [line.partition(":")[0] for line in done.stdout.splitlines() if line]
    assert lines[:2] == ["student", "teacher"]
    assert lines[3:5] == ["you", "student"]
    assert not caplog.messages


def test_reset_forgets_exit_ends_and_blank_lines_are_no_questions(assistant, chat):
    answer = reference(assistant / "student")
    first, second = (transcript(answer, [question]) for question in QUESTIONS[:2])
    printed = chat(assistant, ["", QUESTIONS[0], "/reset", "  ", QUESTIONS[1], " /exit", "more"])
    assert printed == f"{first}you: /reset\n{second}you:  /exit\n"


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_answer_is_remembered_as_far_as_it_came(assistant, chat, monkeypatch):
    put, streams = TextStream.put, []

    def interrupted_put(stream, value):
        streams.extend([] if stream in streams else [stream])
        put(stream, value)
        if stream is streams[0] and len(stream.ids) == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TextStream, "put", interrupted_put)
    first = [message("user", "Hi")]
    said = reference(assistant / "student", 4)(first)
    before = [*first, message("assistant", said)]
    following = transcript(reference(assistant / "student"), QUESTIONS[1:], before)
    assert chat(assistant, QUESTIONS) == f"you: Hi\nstudent: {shown(said)} (stopped)\n{following}"


def test_samples_are_those_of_the_seed(assistant, chat):
    first, again, other, greedy = (
        chat(assistant, QUESTIONS, *settings)
        for settings in (
            *[("chat.temperature=1", "seed=1")] * 2,
            ("chat.temperature=1", "seed=2"),
            ("seed=1",),
        )
    )
    assert first == again
    assert len({first, other, greedy}) == 3


def test_the_trained_teacher_answers_each_question_too(trained_assistant, chat):
    outputs = trained_assistant.parent / "outputs"
    (teacher,) = outputs.glob("artifacts/teacher/*/config.json")
    students, teachers = (
        transcript(reference(folder), QUESTIONS, role=role).split("you: ")[1:]
        for role, folder in (
            ("student", trained_assistant / "student"),
            ("teacher", teacher.parent),
        )
    )
    pairs = zip(students, teachers, strict=True)
    expected = "".join(f"you: {a}{b[b.index('teacher: ') :]}" for a, b in pairs)
    compare = ("chat.compare=true", "chat.max_new_tokens=12")
    assert chat(trained_assistant, QUESTIONS, *compare, outputs=outputs) == expected


def test_each_model_reads_its_own_tokens_and_template(continuer, chat):
    """The student continues what is typed, the teacher answers it."""
    settings = yaml.safe_load((continuer / ".hydra" / "config.yaml").read_text())
    student, teacher = continuer / "student", settings["teacher"]["name"]
    model = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    texts, expected = ["the teacher", "a student learns"], ""
    answers = transcript(reference(teacher), texts, role="teacher").split("you: ")[1:]
    for text, answered in zip(texts, answers, strict=True):
        asked = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        unused = list(range(len(tokenizer), model.config.vocab_size))
        new = {"max_new_tokens": NEW, "suppress_tokens": unused, "do_sample": False}
        continued = tokenizer.decode(model.generate(**asked, **new)[0], skip_special_tokens=True)
        expected += f"you: {text}\nstudent: {shown(continued.removeprefix(text))}\n"
        expected += answered[answered.index("teacher: ") :]
    outputs = continuer.parent / "outputs"
    assert chat(continuer, texts, "chat.compare=true", outputs=outputs) == expected


def test_each_line_is_translated(translator, chat):
    model = AutoModelForSeq2SeqLM.from_pretrained(translator / "student")
    tokenizer = AutoTokenizer.from_pretrained(translator / "student")
    expected = ""
    for text in TEXTS[:3]:
        asked = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**asked, max_new_tokens=NEW, do_sample=False, num_beams=1)
        said = tokenizer.decode(out[0], skip_special_tokens=True)
        expected += f"you: {text}\nstudent: {shown(said)}\n"
    assert chat(translator, TEXTS[:3]) == expected


def test_no_control_character_reaches_the_terminal(assistant, chat):
    assert "\x1b" not in chat(assistant, ["\x1b[2JHi"])


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris, a city of light and of landmarks.",
        "Two paragraphs.\n\nThe second one is longer than a line of the terminal.",
        "It ends with an incomprehensibilityofwordsthatarelongerthanaline",
    ],
)
def test_a_terminal_breaks_lines_between_words(monkeypatch, capsys, text):
    width = 30
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen()
    screen.label("student")
    for character in text:
        screen.write(character)
    screen.end_line()
    printed = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    paragraphs = f"student: {text}".split("\n")
    options = {"width": width, "break_long_words": False, "break_on_hyphens": False}
    expected = [textwrap.fill(paragraph, **options) for paragraph in paragraphs]
    assert re.sub(r" *\n", "\n", printed) == "\n".join(expected) + "\n"


@pytest.mark.slow
def test_a_pipe_of_any_bytes_is_answered_to_its_end(trained_assistant, tmp_path):
    stage = ("stage=chat", f"chat.run={trained_assistant}", "chat.max_new_tokens=3")
    where = ("trainer=cpu", "logger=none", f"paths.outputs={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "lightning_distill", *stage, *where],
        input=b"Hi\n\xff\xfe\nlast, without a newline",
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode().partition("Ctrl-D ends it.\n")[2]
    answers = iter(printed.split("student: ")[1:])
    assert printed.startswith("you: Hi\nstudent: ")
    assert next(answers).endswith("\nyou: \ufffd\ufffd\n")
    assert next(answers).endswith("\nyou: last, without a newline\n")
    assert next(answers).endswith("\n")


@pytest.mark.parametrize("text", ["Ein Käse — 東京 🙂🙂 end", "\ufffd and \ufffd", "🙂"])
def test_a_text_is_written_as_it_comes_in_whole_characters(text):
    tokenizer, written = train_tokenizer(TEXTS, 300), []
    stream = TextStream(tokenizer, written.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in tokenizer(text)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(written) == text == stream.text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in written)


def test_a_continuation_keeps_the_space_in_front_of_it():
    tokenizer, written = spaced_tokenizer(), []
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, intermediate_size=8, **size)).eval()
    continuer = speaker("student", model, tokenizer, ChatSettings(None, Sampling(1.0), 5, 0))
    continuer.answer("soft", continuer.prompt("soft"), written.append)
    assert tokenizer.decode(tokenizer.encode(" target")) == "target"
    assert "".join(written).startswith(" ")
    assert set("".join(written).split()) <= {"soft", "target"}


def spaced_tokenizer():
    """Its tokens mark the space in front of a word, and a decoded text has none in front."""
    words = {token: i for i, token in enumerate(["▁soft", "▁target", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="▁soft"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize(
    "target",
    [
        "lightning_distill.data.Classification",
        "lightning_distill.data.Images",
        "lightning_distill.data.MaskedLM",
    ],
)
def test_a_student_that_generates_no_text_is_refused(assistant, chat, target):
    edit(assistant, lambda settings: settings["data"].update(_target_=target))
    refused = chat(assistant, ["Hi"], expect=2)
    assert "and generates no text" in refused
    assert len(refused.splitlines()) == 1


def test_a_teacher_that_is_gone_is_refused(trained_assistant, chat, tmp_path):
    refused = chat(trained_assistant, ["Hi"], "chat.compare=true", expect=2)
    assert f"chat.compare=true: the teacher of {trained_assistant} is not in" in refused
    assert len(refused.splitlines()) == 1


def test_a_teacher_behind_an_api_is_refused(assistant, chat):
    served = {"_target_": "lightning_distill.models.api_teacher.APITeacher", "max_steps": 0}
    served |= {"url": "http://localhost:1/v1", "name": "big", "tokenizer": "big"}
    edit(
        assistant,
        lambda settings: (settings["teacher"].update(served), settings["transfer"].update(k=5)),
    )
    assert "is behind an API" in chat(assistant, ["Hi"], "chat.compare=true", expect=2)


def test_a_system_message_that_the_template_refuses_is_refused(assistant, chat):
    template = assistant / "student" / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    said = chat(assistant, ["Hi"], "chat.system=short", expect=2)
    assert "chat.system=short: the chat template of the student fails: no system." in said
    assert chat(assistant, ["Hi"]).startswith("you: Hi\nstudent: ")


def edit(run, change):
    file = run / ".hydra" / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    change(settings)
    file.write_text(yaml.safe_dump(settings))
