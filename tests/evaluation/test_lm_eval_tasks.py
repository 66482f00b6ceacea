"""lm-eval on small tasks, against direct computations."""

import json
import math
import sys
from itertools import count

import pytest
import torch
import yaml

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.lm_eval_tasks import flat_metrics, load_tasks, scores_table
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.metrics.declarations import is_metric
from lightning_distill.models.sizes import Size, decoder

pytest.importorskip("lm_eval")


def build(width, layers, heads, positions, tokenizer):
    return decoder(Size(width, layers, heads, positions), tokenizer)


@pytest.fixture(scope="module")
def questions(lm_eval_tasks):
    return [json.loads(line) for line in (lm_eval_tasks / "questions.jsonl").open()]


@pytest.fixture(scope="module")
def tokenizer(questions):
    return train_tokenizer([question["question"] for question in questions], 300)


@pytest.fixture
def model(tokenizer):
    return build(32, 2, 2, 128, tokenizer).eval()


@pytest.fixture
def load(lm_eval_tasks):
    """Loads tasks of the test's own."""

    def load(*tasks, **settings):
        return load_tasks(EvaluationRequest(tasks, str(lm_eval_tasks), **settings))

    return load


@torch.no_grad()
def log_likelihood(model, before, ids):
    """log p(ids | before), in nats."""
    whole = torch.tensor([before + ids])
    log_probs = model(whole[:, :-1]).logits.log_softmax(-1)[0]
    return sum(float(log_probs[i - 1, token]) for i, token in enumerate(before + ids) if i) - sum(
        float(log_probs[i - 1, token]) for i, token in enumerate(before) if i
    )


def test_accuracy_is_how_often_the_right_answer_is_the_most_likely(
    load, model, tokenizer, questions
):
    right = 0
    for question in questions:
        before = tokenizer(question["question"])["input_ids"]
        answers = [tokenizer(f" {answer}")["input_ids"] for answer in question["answers"]]
        likely = [log_likelihood(model, before, ids) for ids in answers]
        right += likely.index(max(likely)) == question["right"]
    accuracy = right / len(questions)
    assert 0 < accuracy < 1
    found = load("choice").evaluate(model, tokenizer)["choice"]
    error = math.sqrt(accuracy * (1 - accuracy) / (len(questions) - 1))
    assert found == pytest.approx({"acc": accuracy, "acc_stderr": error, "examples": 24})


def test_bits_per_byte_cover_the_whole_text_from_its_first_token(load, model, tokenizer, questions):
    nats = size = 0.0
    for question in questions:
        text = question["question"]
        ids = tokenizer(text)["input_ids"]
        nats -= log_likelihood(model, [tokenizer.eos_token_id], ids)
        size += len(text.encode())
    found = load("text").evaluate(model, tokenizer)["text"]
    assert found["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_evaluation_changes_neither_model_nor_tokenizer(load, model, tokenizer):
    tasks = load("choice", "text")
    first = tasks.evaluate(model, tokenizer)
    assert tokenizer.pad_token is None
    tasks.evaluate(build(16, 1, 1, 128, tokenizer), tokenizer)
    assert tasks.evaluate(model, tokenizer) == first


def test_a_model_with_a_reuse_key_is_evaluated_once(load, model, tokenizer):
    tasks = load("choice")
    found = tasks.evaluate(model, tokenizer, "the teacher's hash")
    assert load("choice").evaluate(None, None, "the teacher's hash") == found
    assert load("choice", limit=3).cache == {}


def test_limit_limits_the_number_of_examples(load, model, tokenizer):
    assert load("text", limit=5).evaluate(model, tokenizer)["text"]["examples"] == 5
    alone = load("choice", limit=1).evaluate(model, tokenizer)["choice"]
    assert alone["examples"] == 1
    assert "acc_stderr" not in alone  # it takes two examples


def test_prompts_have_as_many_few_shot_examples_as_requested(load):
    for shots in (None, 2):
        (task,) = load("choice", num_fewshot=shots).loaded["tasks"].values()
        assert task.instances[0].args[0].count("\n\n") == (shots or 0)
    with pytest.raises(ConfigError, match=r"evaluate\.num_fewshot=100 cannot be prepared"):
        load("choice", num_fewshot=100)


@pytest.mark.long  # lm-eval reads the index of all its tasks
def test_a_mistyped_task_is_refused_with_suggestions(load):
    with pytest.raises(ConfigError, match=r"no task hellaswg\. The nearest are: hellaswag,"):
        load("choice", "hellaswg")


def test_generated_answers_must_fit_the_models_positions(lm_eval_tasks, tokenizer, tmp_path):
    choice = yaml.safe_load((lm_eval_tasks / "choice.yaml").read_text())
    write = {"task": "write", "output_type": "generate_until", "doc_to_target": "{{answers[0]}}"}
    write["metric_list"] = [{"metric": "exact_match"}]
    del choice["doc_to_choice"]
    (tmp_path / "write.yaml").write_text(yaml.safe_dump(choice | write))
    tasks = load_tasks(EvaluationRequest(("write",), str(tmp_path), limit=2))
    found = tasks.evaluate(build(16, 1, 1, 512, tokenizer), tokenizer)["write"]
    assert found["exact_match"] == 0
    with pytest.raises(ConfigError, match=r"max tokens to generate \(256\) must be less than"):
        tasks.evaluate(build(16, 1, 1, 128, tokenizer), tokenizer)


def test_an_error_in_a_task_is_reported_in_one_line(tmp_path):
    limits = count(1)  # loaded tasks are cached by their request

    def load(**task):
        named = {"task": "mine", "dataset_path": "json", "test_split": "test", **task}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(named))
        return load_tasks(EvaluationRequest(("mine",), str(tmp_path), limit=next(limits)))

    (tmp_path / "data.jsonl").write_text('{"a": "b"}\n')
    there = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}}}
    gone = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.jsonl")}}}
    ask = {"output_type": "generate_until", "doc_to_text": "{{a}}", "doc_to_target": "{{a}}"}
    assert load(**there, **ask)
    for wrong, said in (
        ({**gone, **ask}, "gone.jsonl"),
        ({**there, **ask, "test_split": "validation"}, "validation"),
        ({**there, **ask, "doc_to_text": "{{b.c}}"}, "'b' is undefined"),
        ({**there, **ask, "unsafe_code": True}, "runs code that models generate"),
    ):
        with pytest.raises(ConfigError) as error:
            load(**wrong)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="there is no such folder"):
        load_tasks(EvaluationRequest(("mine",), str(tmp_path / "no")))


def test_without_lm_eval_the_extra_is_named(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning_distill\[lm-eval\]'"):
        load("choice", limit=17)


def test_metrics_are_named_without_the_default_filter():
    result = {
        "alias": "gsm",
        "sample_len": 7,
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": 0.1,
        "acc,none": 0.25,
        "acc_stderr,none": "N/A",
        "perplexity,none": math.inf,
    }
    numbers = flat_metrics(result)
    assert numbers == {
        "exact_match_strict-match": 0.5,
        "exact_match_stderr_strict-match": 0.1,
        "acc": 0.25,
        "examples": 7,
    }
    assert list(filter(is_metric, numbers)) == ["exact_match_strict-match", "acc"]
    table = scores_table({"student": {"gsm": numbers}, "teacher": {"gsm": {"acc": 0.5}}})
    assert "0.5000 ± 0.1000" in table
    assert flat_metrics({"alias": "a group", " ": " "}) == {}
