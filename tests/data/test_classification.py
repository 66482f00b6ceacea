"""Text classification: the examples, the labels' order, the whole command."""

import json
import logging
import random
from collections import Counter

import datasets
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from lightning_distill.data.sources.labelled_rows import LabelledRows
from lightning_distill.data.sources.python_topics import TOPICS, PythonTopics, blanked
from lightning_distill.data.tasks.classification import Classification
from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.models.classifier import adapt_head
from lightning_distill.models.output_head import Predictor
from lightning_distill.storage.artifacts import Store

WORDS = {"sea": "wave salt fish deep", "wood": "leaf bark moss deep", "town": "road shop tram deep"}
LABELS = sorted(WORDS)


def rows(count=90, labels=WORDS):
    """Texts of 3 to 40 words, most of them their label's."""
    dice, names = random.Random(0), list(labels)
    found = []
    for number in range(count):
        label = names[number % len(names)]
        words = [dice.choice(WORDS[label].split()) for _ in range(dice.randint(3, 40))]
        found.append({"text": " ".join([*words, f"no {number}"]), "label": label})
    return found


def write(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows") / "texts.jsonl", rows())


@pytest.fixture
def prepare(file, tmp_path_factory):
    def make(path=file, length=24, skip=False, tokenizer=None, column="text", label="label"):
        data = Classification(
            LabelledRows, length, 8, 300, held_out=0.2,
            path=str(path), column=column, label_column=label, skip_bad_rows=skip,
        )  # fmt: skip
        data.prepare(Store(tmp_path_factory.getbasetemp() / "outputs"), tokenizer)
        return data

    return make


def bert(labels, kind=BertForSequenceClassification, vocab_size=300, **settings):
    config = BertConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, id2label=dict(enumerate(labels)),
        **settings,
    )  # fmt: skip
    return kind(config).eval()


@pytest.fixture
def saved(tmp_path, prepare):
    """A fine-tuned classifier of somebody's, in our tokens."""

    def save(labels, kind=BertForSequenceClassification):
        model = bert(labels, kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path / "theirs"
        model.save_pretrained(folder)
        prepare().tokenizer.save_pretrained(folder)
        return folder, model

    return save


def test_an_example_is_a_text_of_its_label_filled_up_or_cut(prepare):
    data = prepare()
    given = {row["text"]: row["label"] for row in rows()}
    seen = []
    for split in ("train", "validation", "test"):
        for number, example in enumerate(data.examples(split)):
            kept = example["attention_mask"].bool()
            count = int(kept.sum())
            assert kept[:count].all()
            text = data.tokenizer.decode(example["input_ids"][kept])
            (whole,) = [one for one in given if one.startswith(text)]
            assert data.labels[example["labels"]] == given[whole]
            assert example["block"] == number
            assert len(kept) == 24
            assert count == min(24, len(data.tokenizer(whole)["input_ids"]))
            seen.append(whole)
    assert Counter(seen) == dict.fromkeys(given, 1)


def test_a_batch_is_as_long_as_its_longest_text_and_padding_changes_nothing(prepare):
    data = prepare(length=200)
    examples = data.examples("test")
    (batch,) = data.loader(examples, len(examples))
    assert batch["attention_mask"].any(0).all()
    assert batch["input_ids"].shape[1] < 200
    model = bert(LABELS).double()
    together = Predictor(model, 3)(batch).logits()
    alone = [Predictor(model, 3)(next(iter(data.loader([x], 1)))).logits() for x in examples]
    torch.testing.assert_close(together, torch.cat(alone))


def test_special_tokens_of_a_given_tokenizer_frame_each_text_also_a_cut_one(prepare):
    tokenizer = train_tokenizer([row["text"] for row in rows()], 300)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    from tokenizers.processors import TemplateProcessing

    ids = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    data = prepare(tokenizer=tokenizer)
    for split in ("train", "test"):
        for example in data.examples(split):
            ids = example["input_ids"][example["attention_mask"].bool()]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert tokenizer(text)["input_ids"] == ids.tolist()


def test_numbers_are_labels_in_their_order_and_names_of_a_data_set_are_used(prepare, tmp_path):
    number = {"sea": 10, "wood": 2, "town": -1}
    lines = [row | {"label": number[row["label"]]} for row in rows()]
    assert prepare(write(tmp_path / "a.jsonl", lines)).labels == ["-1", "2", "10"]
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["wood", "sea", "town"]),
        }
    )
    datasets.Dataset.from_list(rows(), features=features).save_to_disk(str(tmp_path / "saved"))
    assert prepare(tmp_path / "saved").labels == LABELS


REFUSED = [
    ([{"text": "a", "kind": "b"}], r"line 91: no column label \(data.label_column=label\)"),
    ([{"body": "a", "label": "b"}], r"line 91: no column text \(data.column=text\); it has: body"),
    ([{"text": "a", "label": None}], "line 91: label is None, not a string or a number"),
    ([{"text": "a", "label": " "}], "line 91: label is empty"),
    ([{"text": "", "label": "sea"}], "line 91: text is empty"),
    (["no row"], "line 91: no column text"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_a_bad_row_is_named_or_left_out(bad, message, prepare, tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", [*rows(), *bad])
    with pytest.raises(ConfigError, match=message):
        prepare(file)
    with caplog.at_level(logging.WARNING):
        assert prepare(file, skip=True).labels == LABELS
    assert "skipped 1 of 91 rows" in caplog.text


def test_labels_that_cannot_be_learned_are_refused(prepare, tmp_path):
    with pytest.raises(ConfigError, match="all texts have the label 'sea'"):
        prepare(write(tmp_path / "one.jsonl", rows(labels=["sea"])))
    data = prepare()
    held_out = data.tokenizer.decode(
        data.examples("test")[0]["input_ids"][data.examples("test")[0]["attention_mask"].bool()]
    )
    (row,) = [row for row in rows() if row["text"].startswith(held_out)]
    lines = [x | {"label": "rare"} if x == row else x for x in rows()]
    with pytest.raises(ConfigError, match="'rare' is on held-out texts alone"):
        prepare(write(tmp_path / "rare.jsonl", lines))


@pytest.mark.parametrize("kind", [BertForSequenceClassification, RobertaForSequenceClassification])
def test_labels_in_another_order_are_brought_into_ours(kind, prepare):
    theirs = ["town", "sea", "wood"]
    if kind is BertForSequenceClassification:
        model = bert(theirs)
    else:
        config = RobertaConfig(
            vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=64, id2label=dict(enumerate(theirs)),
        )  # fmt: skip
        model = kind(config).eval()
    model.config.architectures = [kind.__name__]
    ids = torch.arange(3, 9)[None]
    before = model(ids).logits[0]
    adapt_head(model, "theirs", LABELS, is_trained=False)
    after = model(ids).logits[0]
    assert [float(after[LABELS.index(x)]) for x in theirs] == before.tolist()
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {x: i for i, x in enumerate(LABELS)}


def test_labels_without_names_are_taken_in_order(caplog):
    model = bert(["LABEL_0", "LABEL_1", "LABEL_2"])
    model.config.architectures = [type(model).__name__]
    weight = model.classifier.weight.clone()
    with caplog.at_level(logging.INFO):
        adapt_head(model, "theirs", LABELS, is_trained=False)
    assert torch.equal(model.classifier.weight, weight)
    assert "theirs does not name its labels; assuming the order 'sea'" in caplog.text


STRANGERS = [
    (["sea", "wood"], "it does not know the label 'town'"),
    (["sea", "town", "wood", "air"], "it also predicts 'air', which the data lack"),
    (["sea", "town", "tree"], "not know the label 'wood', and it also predicts 'tree'"),
    (["LABEL_0", "LABEL_1"], "does not know the label 'sea', 'town', 'wood'"),
]


@pytest.mark.parametrize(("labels", "message"), STRANGERS)
def test_a_teacher_of_other_labels_is_refused_unless_it_is_trained_further(labels, message):
    model = bert(labels)
    model.config.architectures = [type(model).__name__]
    with pytest.raises(ConfigError, match=message):
        adapt_head(model, "theirs", LABELS, is_trained=False)
    adapt_head(model, "theirs", LABELS, is_trained=True)
    assert model(torch.arange(3, 9)[None]).logits.shape == (1, 3)
    assert model.config.num_labels == model.num_labels == 3


def test_the_embedded_texts_do_not_name_their_topic():
    examples = list(PythonTopics().rows())
    counts = Counter(topic for _, topic in examples)
    assert set(counts) == set(TOPICS)
    assert min(counts.values()) > 40
    assert not [text for text, topic in examples if topic in text.lower()]
    assert blanked("json", "A JSONDecoder of json.") == "A …Decoder of …."
    assert len({text for text, _ in examples}) == len(examples)


@pytest.fixture(scope="module")
def run(in_process, file, tmp_path_factory):
    """The command on these rows, with one folder of artifacts."""
    outputs = tmp_path_factory.mktemp("outputs")

    def call(*overrides, expect=0, path=file, folder=None):
        sizes = ("student.hidden_size=16", "teacher.hidden_size=16", "teacher=xs")
        named = [o.split("=")[0] for o in overrides if o.endswith("=pretrained")]
        own = [o for o in sizes if o.split(".")[0].split("=")[0] not in named]
        folder = folder or tmp_path_factory.mktemp("run")
        done = in_process(
            "data=classification", f"data.path={path}", "data.vocab_size=300",
            "data.sequence_length=16", "student=xs", *own, "student.max_steps=12",
            *([] if "teacher" in named else ["teacher.max_steps=60"]), "trainer=cpu",
            "logger=none", f"paths.outputs={outputs}", f"hydra.run.dir={folder}", *overrides,
            tiny=False, expect=expect,
        )  # fmt: skip
        return json.loads((folder / "results.json").read_text()) if not expect else done.stderr

    call.outputs = outputs
    return call


def test_a_student_is_distilled_and_its_folder_classifies_alone(run, tmp_path):
    found = run("loss.hidden.weight=1", "teacher.hidden_size=32", folder=tmp_path)
    assert found["teacher"]["accuracy"] > 0.9
    assert set(found["student"]) == {
        "parameters", "nll", "accuracy", "f1", "calibration_error", "teacher_agreement",
        "teacher_kl",
    }  # fmt: skip
    (teacher,) = run.outputs.glob("artifacts/teacher/*")
    ask = pipeline("text-classification", model=str(teacher))
    for label, words in WORDS.items():
        assert ask(words)[0]["label"] == label
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert len(samples) == 3
    assert samples[0]["teacher"].split()[0] in LABELS
    assert AutoTokenizer.from_pretrained(tmp_path / "student").vocab_size == 300


def test_stored_predictions_of_every_class_teach_what_the_teacher_would(run):
    online = run("loss.alpha=2")
    stored = ["transfer=cached", "transfer.stored=topk", "transfer.k=3", "transfer.bits=16"]
    cached = run("loss.alpha=2", *stored)
    assert cached["student"]["nll"] == pytest.approx(online["student"]["nll"], abs=1e-3)
    assert cached["student"]["nll"] != run("loss.alpha=0")["student"]["nll"]


def test_a_teacher_of_the_same_labels_in_another_order_teaches_like_one_in_ours(run, tmp_path):
    """A trained teacher's folder, and the same with its labels in another order."""
    run()
    (own,) = [
        f for f in run.outputs.glob("artifacts/teacher/*")
        if json.loads((f / "config.json").read_text())["hidden_size"] == 16
    ]  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(own)
    order = [2, 0, 1]
    with torch.no_grad():
        for x in (model.classifier.weight, model.classifier.bias):
            if x is not None:
                x.copy_(x[order].clone())
    model.config.id2label = {i: LABELS[place] for i, place in enumerate(order)}
    model.config.label2id = {v: k for k, v in model.config.id2label.items()}
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(own).save_pretrained(tmp_path)
    found = [run("teacher=pretrained", f"teacher.name={name}") for name in (own, tmp_path)]
    assert found[0]["teacher"] == found[1]["teacher"]
    assert found[0]["student"] == found[1]["student"]


def test_what_the_command_refuses(run, saved, tmp_path):
    said = run("transfer=cached", expect=2)
    assert "transfer.k=8 + transfer.draws=24 is more than the 3 that a prediction" in said
    file = write(tmp_path / "kind.jsonl", [{"text": "a", "kind": "b"}])
    said = run(path=file, expect=2)
    assert "line 1: no column label (data.label_column=label); it has: text, kind" in said
    folder, _ = saved(["sea", "wood", "air"])
    theirs = ["teacher=pretrained", f"teacher.name={folder}"]
    assert "it does not know the label 'town', and it also predicts 'air'" in run(*theirs, expect=2)
    saved(LABELS)
    said = run(*theirs, "data.sequence_length=128", expect=2)
    assert "data.sequence_length=128 is longer than the 64 positions" in said
    saved([], BertForMaskedLM)
    assert "has no trained head for labels" in run(*theirs, expect=2)
    other = tmp_path / "other"
    bert(LABELS, vocab_size=280).save_pretrained(other)
    train_tokenizer(["entirely other words"] * 3, 280).save_pretrained(other)
    said = run(*theirs, "student=pretrained", f"student.name={other}", "loss=universal", expect=2)
    assert "This task needs one: choose a student with the teacher's tokenizer" in said
    assert len(said.strip().splitlines()) == 1


def test_a_base_encoder_is_fine_tuned_into_a_teacher(run, saved):
    folder, _ = saved([], BertForMaskedLM)
    random = "teacher.optimizer.lr=6e-3"  # its weights are
    found = run("teacher=pretrained", f"teacher.name={folder}", "teacher.max_steps=60", random)
    assert found["teacher"]["accuracy"] > 0.5
