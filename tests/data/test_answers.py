"""Conversations that a teacher answers, against transformers' own `generate`."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lightning_distill.data.answering import AnswerSettings
from lightning_distill.data.answers import Answerer, answered
from lightning_distill.data.assistant_masker import TODAY
from lightning_distill.data.messages import conversation_of
from lightning_distill.data.sources.base import Conversation
from lightning_distill.data.sources.everyday_questions import EverydayQuestions
from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import Store

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
GREEDY = AnswerSettings(0.0, 12)
QUESTIONS = ["Why?", "How is it done?", "abc", "What is a small thing", "Who is there?"]


class Questions:
    """A source of conversations."""

    def __init__(self, *conversations):
        self.conversations = conversations

    def fingerprint(self):
        return json.dumps(self.conversations)

    def read(self, parse):
        return map(parse, (Conversation(list(one)) for one in self.conversations))


def asks(*questions):
    return [{"role": "user", "content": question} for question in questions]


@pytest.fixture(scope="module")
def tokenizer():
    special = ["<end>", "<assistant>", "<user>", "<system>"]
    trained = train_tokenizer(["a small text of small words\n"] * 50, 300, special)
    trained.chat_template = TEMPLATE
    trained.eos_token = "<end>"
    return trained


@pytest.fixture(scope="module")
def model(tokenizer):
    """Each token is followed by one that depends on it, and on its place; the chain ends soon."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, max_position_embeddings=128,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.model.layers[0].self_attn.o_proj.weight.normal_(std=0.05)
        states = model.model.embed_tokens.weight
        following = torch.randperm(len(tokenizer))
        model.lm_head.weight.copy_(states[following])
        for token in range(0, len(tokenizer), 3):  # one token in three ends the answer
            model.lm_head.weight[tokenizer.eos_token_id] += states[token]
    return model


@pytest.fixture
def answer(tokenizer, model, tmp_path):
    loads = []

    def load():
        loads.append(1)
        return model

    def run(*conversations, settings=GREEDY, key="a", sample=False):
        source = Questions(*conversations)
        store = Store(tmp_path)
        answerer = Answerer(key, load, sample)
        result = answered(answerer, tokenizer, settings, store, source).source
        return [one.messages for one in result.read(lambda one: one)]

    run.loads = loads
    return run


def expected(model, tokenizer, messages, limit=GREEDY.max_new_tokens):
    """transformers' greedy answer; None where it does not end."""
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    new = model.generate(**prompt, max_new_tokens=limit, do_sample=False)[0]
    new = new[prompt["input_ids"].shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    return text if new[-1] == tokenizer.eos_token_id and text else None


def test_each_question_is_answered_as_transformers_does(answer, model, tokenizer):
    wanted = {q: expected(model, tokenizer, asks(q)) for q in QUESTIONS}
    assert 0 < sum(text is None for text in wanted.values()) < len(wanted) or all(wanted.values())
    found = {one[0]["content"]: one[1:] for one in answer(*map(asks, QUESTIONS))}
    assert found == {
        q: [{"role": "assistant", "content": text}] for q, text in wanted.items() if text
    }


def test_a_later_question_follows_the_answers_before_it(answer, model, tokenizer):
    system = {"role": "system", "content": "Be short."}
    old = {"role": "assistant", "content": "an answer of the data"}
    first, second = asks("Why?", "How is it done?")
    (found,) = answer([system, first, old, second, old])
    reply = expected(model, tokenizer, [system, first])
    history = [system, first, {"role": "assistant", "content": reply}, second]
    last = {"role": "assistant", "content": expected(model, tokenizer, history)}
    assert found == [*history, last]


def test_answers_are_made_once(answer):
    first = answer(*map(asks, QUESTIONS))
    assert answer(*map(asks, QUESTIONS)) == first
    assert len(answer.loads) == 1
    answer(*map(asks, QUESTIONS), key="b")
    answer(*map(asks, QUESTIONS), settings=AnswerSettings(0.0, 11))
    assert len(answer.loads) == 3


def test_a_plan_asks_a_few_questions_and_copies_stand_for_the_others(answer, model, tokenizer):
    conversations = [asks(f"{q} {n}") for q in QUESTIONS for n in range(20)]
    sampled = answer(*conversations, sample=True)
    assert len(sampled) == len(conversations)
    assert len({str(one) for one in sampled}) == len(conversations)  # none counts as a repeat
    originals, copies = sampled[:8], sampled[8:16]
    for (question, reply), copy in zip(originals, copies, strict=True):
        assert [question] in conversations
        assert copy == [{**question, "content": f"{question['content']} (1)"}, reply]
        wanted = expected(model, tokenizer, [question])
        assert wanted is None or reply["content"] == wanted
    assert answer(*conversations, sample=True) == sampled
    assert len(answer.loads) == 1


def test_a_plan_reads_the_answers_that_exist(answer):
    conversations = [asks(f"{q} {n}") for q in QUESTIONS for n in range(20)]
    answer(*conversations, sample=True)
    answers = answer(*conversations)  # not those of the sample
    assert not any("(1)" in one[0]["content"] for one in answers)
    assert answer(*conversations, sample=True) == answers


def test_answers_do_not_depend_on_the_day(answer, tokenizer, monkeypatch):
    dated = TEMPLATE + "{{ strftime_now('%Y') }}"
    one_day = TEMPLATE + str(TODAY.year)
    monkeypatch.setattr(tokenizer, "chat_template", dated)
    answers = answer(*map(asks, QUESTIONS))
    monkeypatch.setattr(tokenizer, "chat_template", one_day)
    assert answer(*map(asks, QUESTIONS)) == answers


def test_sampled_answers_are_those_of_their_place(answer, tmp_path):
    conversations = [asks(f"{q} {n}") for q in QUESTIONS for n in range(20)]
    settings = AnswerSettings(1.0, 12)
    first = answer(*conversations, settings=settings)
    (folder,) = tmp_path.glob("artifacts/conversations/*/")
    (folder / "conversations-00001.jsonl").unlink()  # damaged, so that it is made again
    assert answer(*conversations, settings=settings) == first
    assert len(answer.loads) == 2


def test_without_an_answer_that_ends_there_is_nothing_to_learn(answer):
    with pytest.raises(ConfigError, match="No answer of the teacher ends within"):
        answer(asks("Why?"), settings=AnswerSettings(0.0, 1))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": asks("Why?")},
        {"prompt": "Why?"},
        {"prompt": asks("Why?")},
        {"instruction": "Why?", "input": ""},
        asks("Why?"),
    ],
    ids=str,
)
def test_a_row_may_be_a_question_alone(row):
    assert conversation_of(row, "messages").messages == asks("Why?")


def test_the_questions_are_distinct_and_some_are_of_each_kind():
    questions = EverydayQuestions(400).questions
    assert len(set(questions)) == 400
    for start in ("What is ", "How do I ", "Begin a story", "What is the capital of "):
        assert any(one.startswith(start) for one in questions)
    assert EverydayQuestions(50).questions == questions[:50]
    with pytest.raises(ConfigError, match="more than the"):
        EverydayQuestions(10_000)


@pytest.mark.slow
def test_a_student_learns_from_questions_alone(model, tokenizer, in_process, tmp_path):
    folder, questions = tmp_path / "teacher", tmp_path / "questions.jsonl"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"{q} {n}"} for q in QUESTIONS for n in range(20)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "data=chat", "data.sequence_length=64", "teacher=pretrained", f"teacher.name={folder}",
        "teacher.max_steps=0", "student.max_steps=2", f"paths.outputs={tmp_path}",
        "data.answer_tokens=12",
    ]  # fmt: skip
    refused = in_process(*command, f"data.path={questions}", expect=2)
    assert "with data.answers=teacher, the teacher answers" in refused.stderr
    planned = in_process(
        *command, f"data.path={questions}", "data.answers=teacher", "stage=plan",
        f"hydra.run.dir={tmp_path / 'plan'}",
    )  # fmt: skip
    assert re.search(r"conversations \w{16}: to make, 100 conversations, ", planned.stdout)
    in_process(
        *command, f"data.path={questions}", "data.answers=teacher",
        "student.initialize=teacher_layers", "student.layers=1", "student.hidden_size=64",
        "student.max_steps=0",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["student"]["teacher_kl"] == pytest.approx(0, abs=1e-5)
    assert results["student"]["nll"] == pytest.approx(results["teacher"]["nll"])
    assert results["training"] == {"steps": 0, "max_steps": 0, "kept_step": 0}
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "student").eos_token == "<end>"
