"""Several sources in one data set."""

import json

import pytest
import torch
from conftest import without_its_end
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lightning_distill.constants import IGNORED
from lightning_distill.data.loaders import RankShare, TrainSampler
from lightning_distill.data.mixture import MixedExamples
from lightning_distill.data.sources.conversations import Conversations
from lightning_distill.data.sources.labelled_rows import LabelledRows
from lightning_distill.data.sources.pairs import Pairs
from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tasks.chat import Chat
from lightning_distill.data.tasks.classification import Classification
from lightning_distill.data.tasks.masked_lm import MaskedLM
from lightning_distill.data.tasks.translation import Translation
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import Store

NAMES = ("letters", "digits")


def texts(name, count):
    words = {"letters": ("alpha", "beta", "gamma"), "digits": ("123", "456", "789")}[name]
    return [" ".join(words[(i + j) % 3] for j in range(9)) + f" {name} {i}" for i in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    for name, count in zip(NAMES, (60, 20), strict=True):
        rows = []
        for i, text in enumerate(texts(name, count)):
            chat = [
                {"role": "user", "content": f"{name} {i}"},
                {"role": "assistant", "content": text},
            ]
            rows.append({"text": text, "label": str(i % 2), "target": text[:9], "messages": chat})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def mixture_of(folder, weights=(3, 1)):
    return {
        name: {"path": str(folder / f"{name}.jsonl"), "weight": weight}
        for name, weight in zip(NAMES, weights, strict=True)
    }


TASKS = {
    "text": lambda more: CausalLM(Text, 16, 4, 300, isolate_documents=False, **more),
    "masked": lambda more: MaskedLM(Text, 8, 4, 300, mask_share=0.2, **more),
    "chat": lambda more: Chat(
        *(Conversations, 80, 4, 300),
        chat_template=None,
        column="messages",
        skip_bad_rows=False,
        **more,
    ),
    "labels": lambda more: Classification(
        *(LabelledRows, 32, 4, 300),
        column="text",
        label_column="label",
        skip_bad_rows=False,
        **more,
    ),
    "pairs": lambda more: Translation(
        Pairs, 64, 4, 300, source_column="text", target_column="target", **more
    ),
}


def prepared(task, folder, outputs, **more):
    data = TASKS[task]({"mixture": mixture_of(folder), **more})
    data.prepare(Store(outputs), None)
    return data


@pytest.mark.parametrize("task", TASKS)
def test_each_example_is_of_its_source_in_every_task(files, tmp_path, task):
    data = prepared(task, files, tmp_path)
    for split in ("train", "validation", "test"):
        examples, parts = data.examples(split), data.part_of(split)
        assert len(parts) == len(examples)
        assert set(parts.tolist()) == {0, 1}
        pure = 0
        for index, part in enumerate(parts.tolist()):
            ids, labels = examples[index]["input_ids"], examples[index]["labels"]
            if task == "masked":
                ids = torch.where(labels == IGNORED, ids, labels)
            text = data.tokenizer.decode(ids)
            others = sum(word in text for word in ("alpha", "beta", "gamma"))
            numbers = sum(word in text for word in ("123", "456", "789"))
            pure += (others > 0) == (part == 0) and (numbers > 0) == (part == 1)
        assert pure >= len(parts) - 1  # running text goes on from one source to the next


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.booleans(),
)
def test_every_beginning_has_the_sources_in_proportion(counts, weights, weighted):
    parts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    used = weights[: len(counts)] if weighted else counts
    mixed = MixedExamples([{}] * len(parts), parts, used if weighted else None)
    assert sorted(mixed.order.tolist()) == list(range(len(parts)))
    exhausted = min(int(n * sum(used) / w) for n, w in zip(counts, used, strict=True))
    for stop in range(1, exhausted + 1):
        found = mixed.parts[:stop].bincount(minlength=len(counts))
        for number, weight in enumerate(used):
            assert abs(int(found[number]) - stop * weight / sum(used)) <= len(counts)


@given(st.integers(0, 99), st.integers(0, 400), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_sources_are_drawn_by_their_weights_and_an_interrupted_run_goes_on(seed, start, world):
    parts = torch.tensor([0] * 50 + [1] * 5)
    share = [RankShare(rank, world, 2) for rank in range(world)]

    def drawn(start, which):
        return list(TrainSampler(55, 3000, seed, start, which, parts, [1.0, 3.0]))

    whole = drawn(0, RankShare())
    assert sum(index >= 50 for index in whole) / 3000 == pytest.approx(0.75, abs=0.04)
    of_small = [index for index in whole if index >= 50]
    for begin in range(0, len(of_small) - 5, 5):  # each pass has each example once
        assert sorted(of_small[begin : begin + 5]) == [50, 51, 52, 53, 54]
    assert drawn(start, RankShare()) == whole[start:]
    together = sorted(i for one in share for i in drawn(0, one))
    assert together == sorted(whole)


def test_a_text_in_two_sources_is_in_one_split(files, tmp_path, caplog):
    mixture = mixture_of(files)
    more = ["new " * 30, "a", "b"]
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in more))
    again = [mixture["letters"]["path"], str(tmp_path / "more.jsonl")]
    data = TASKS["text"]({"mixture": mixture | {"again": {"path": again, "weight": 1}}})
    data.prepare(Store(tmp_path / "outputs"), None)
    text = "".join(data.tokenizer.decode(data._tokens[s]) for s in ("train", "validation", "test"))
    expected = [*texts("letters", 60), *texts("digits", 20), *more]
    assert sorted(text.split("<|endoftext|>")[:-1]) == sorted(expected)
    assert "60 documents" in caplog.text


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"a": {"path": "x", "weight": 0}, "b": {"path": "y", "weight": 1}}, "a.weight=0 must be"),
        ({"a": {"path": "x"}, "b": {"path": "y", "weight": 1}}, "give each source a weight, or"),
        ({"a": {"path": "x"}}, "data.mixture names 1 source"),
        ([{"path": "x"}, {"path": "y"}], "data.mixture=.* must name sources"),
        ({"a": "x", "b": "y"}, "data.mixture=.* must name sources"),
        ({"a": {}, "b": {}}, "data.mixture.a: "),
        ({"a": {"paht": "x"}, "b": {"path": "y"}}, "data.mixture.a: .*paht"),
        ({"a": {"path": "/no/x"}, "b": {"path": "y"}}, "data.mixture.a.path=/no/x does not exist"),
    ],
)
def test_what_is_no_mixture_is_refused(mixture, message):
    with pytest.raises(ConfigError, match=message):
        TASKS["text"]({"mixture": mixture})


def test_a_mixture_cannot_be_streamed(files):
    with pytest.raises(ConfigError, match=r"data.mixture needs data.streaming=false"):
        CausalLM(
            Text, 16, 4, 300, isolate_documents=False, streaming=True, mixture=mixture_of(files)
        )


def run_of(files, outputs, *more):
    mixture = json.dumps(mixture_of(files)).replace('"', "")
    return [
        *("data=text", f"data.mixture={mixture}", "data.vocab_size=300", "data.sequence_length=16"),
        *("teacher=xs", "student=xs", "teacher.max_steps=6", "student.max_steps=8"),
        *("teacher.hidden_size=16", "student.hidden_size=8", "logger=none", "trainer=cpu"),
        *(f"paths.outputs={outputs}", *more),
    ]


@pytest.mark.parametrize("transfer", ["online", "cached"])
def test_a_run_on_a_mixture_scores_each_source_and_is_resumed(
    in_process, files, tmp_path, transfer
):
    command = run_of(
        *(files, tmp_path, f"transfer={transfer}", "transfer.num_blocks=12"),
        *("checkpoint_every_n_steps=3", f"hydra.run.dir={tmp_path / 'run'}"),
    )
    with without_its_end():
        in_process(*command)
    file, student = tmp_path / "run/results.json", tmp_path / "run/student/model.safetensors"
    results, whole = json.loads(file.read_text()), load_file(student)
    for role in ("student", "teacher"):
        assert set(results[role]["sources"]) == set(NAMES)
        scores = [one["nll"] for one in results[role]["sources"].values()]
        assert min(scores) < results[role]["nll"] < max(scores)
    student.unlink()
    file.write_text(json.dumps(results | {"status": "running"}))
    assert "resuming from step 6" in in_process(*command).stdout
    assert json.loads(file.read_text())["student"] == results["student"]
    assert all(torch.equal(x, whole[name]) for name, x in load_file(student).items())
