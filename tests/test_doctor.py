"""Each thing that can be wrong turns the line red that is about it, and no other."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_distill.data.packing import Blocks, check_targets
from lightning_distill.errors import ConfigError
from lightning_distill.planning.doctor import CHECKS


@pytest.fixture(scope="module")
def outputs(in_process, tmp_path_factory):
    """With a trained teacher."""
    found = tmp_path_factory.mktemp("doctor") / "outputs"
    in_process("stage=teacher", *LONGER, f"paths.outputs={found}")
    return found


LONGER = ["teacher.max_steps=60"]


@pytest.fixture
def examine(in_process, outputs):
    """What the doctor says of each check: its mark, and what it found."""

    def run(*overrides, expect=0):
        settings = ["stage=doctor", *LONGER, f"paths.outputs={outputs}", *overrides]
        done = in_process(*settings, expect=expect)
        lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        found = {name: (mark, said) for mark, name, said in lines if name in CHECKS}
        assert list(found) == list(CHECKS)  # all of them, whatever the others say
        return found

    return run


def wrong(found):
    return [name for name, (mark, _) in found.items() if mark == "WRONG"]


def left_out(found):
    return [name for name, (mark, _) in found.items() if mark == "-"]


@pytest.fixture(scope="module")
def folder(outputs, tmp_path_factory):
    """The trained teacher, for others to call pretrained."""
    (made,) = (f.parent for f in (outputs / "artifacts" / "teacher").glob("*/config.json"))
    found = tmp_path_factory.mktemp("pretrained") / "trained"
    shutil.copytree(made, found, ignore=shutil.ignore_patterns("manifest.json", "metrics.csv"))
    return found


def same(weight):
    return weight


@pytest.fixture
def pretrained(folder, tmp_path):
    """Overrides for that model as the teacher or as the student, with its weights changed."""

    def make(role, change=same):
        copy = tmp_path / f"{role}-{change.__name__}"
        shutil.copytree(folder, copy)
        weights = load_file(copy / "model.safetensors")
        changed = {name: change(weight).contiguous() for name, weight in weights.items()}
        save_file(changed, copy / "model.safetensors", {"format": "pt"})
        steps = ["teacher.max_steps=0"] if role == "teacher" else []
        return [f"{role}=pretrained", f"{role}.name={copy}", *steps]

    return make


def test_what_is_well_is_found_well(examine):
    found = examine("transfer=cached")
    assert not wrong(found)
    assert not left_out(found)
    assert "to be made" in found["cache"][1]


def test_a_teacher_that_is_not_there_is_not_trained_for_this(examine, tmp_path):
    found = examine(f"paths.outputs={tmp_path}")
    assert not wrong(found)
    assert left_out(found) == ["teacher", "alignment"]
    assert not list((tmp_path / "artifacts").glob("teacher/*"))
    assert not list(tmp_path.rglob("results.json"))


def noise(weight):
    return torch.randn_like(weight)


def nan(weight):
    return weight * float("nan")


def test_a_teacher_that_knows_less_than_its_student_is_found(examine, pretrained):
    found = examine(*pretrained("teacher", noise), *pretrained("student"), expect=2)
    assert wrong(found) == ["teacher"]
    assert left_out(found) == ["alignment"]
    assert "no better than chance" in found["teacher"][1]
    swapped = examine(*pretrained("teacher"), "student.max_steps=3", expect=0)
    assert not wrong(swapped)


def blurred(weight):
    return 0.98 * weight


def test_a_student_that_is_better_already_is_found(examine, pretrained):
    found = examine(*pretrained("teacher", blurred), *pretrained("student"), expect=2)
    assert wrong(found) == ["teacher"]
    assert "no better than the student" in found["teacher"][1]


def test_a_teacher_with_weights_that_are_no_numbers_is_found(examine, pretrained):
    found = examine(*pretrained("teacher", nan), expect=2)
    assert wrong(found)[0] == "teacher"
    assert "nan" in found["teacher"][1]


def test_a_vocabulary_of_the_same_size_with_other_ids_is_found(examine, pretrained, tmp_path):
    settings = [*pretrained("teacher"), *pretrained("student")]
    (file,) = (f for f in tmp_path.rglob("tokenizer.json") if f.parent.name.startswith("student"))
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    a, b = [token for token in vocab if len(token) > 1][:2]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    file.write_text(json.dumps(tokenizer))
    found = examine(*settings, expect=2)
    assert wrong(found) == ["text"]
    assert "different vocabularies" in found["text"][1]
    assert set(left_out(found)) == set(CHECKS) - {"device", "tracker", "text"}


def blocks(targets):
    count = len(targets)
    return Blocks(
        torch.arange(count), torch.zeros(count, dtype=torch.int32), 4, False, torch.tensor(targets)
    )


def test_a_split_with_nothing_to_predict_is_found():
    assert "35.0% of train" in check_targets(
        {"train": blocks([True, False, False, False, True] * 4)}
    )
    with pytest.raises(ConfigError, match="no token of the test split"):
        check_targets({"train": blocks([True] * 9), "test": blocks([False] * 9)})


class Shifted(Blocks):
    def __getitem__(self, index):
        block = super().__getitem__(index)
        return block | {"labels": block["input_ids"]}


def test_labels_that_are_not_the_next_tokens_are_found():
    found = blocks([True] * 9)
    shifted = Shifted(found.tokens, found.documents, 4, False)
    with pytest.raises(ConfigError, match="6 labels of the train split are not the tokens"):
        check_targets({"train": shifted})


def test_a_device_that_is_not_there_is_found(examine):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    found = examine("trainer=gpu", expect=2)
    assert wrong(found) == ["device"]
    assert {"steps", "disk", "memory"} <= set(left_out(found))


def test_a_loss_that_the_cache_cannot_serve_is_found(examine):
    found = examine("transfer=cached", "loss=jensen_shannon", expect=2)
    assert wrong(found) == ["settings"]


def test_a_disk_without_room_is_found(examine, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2000, 1000, 1000))
    found = examine(expect=2)
    assert wrong(found) == ["disk"]
    assert "1.0 kB that are free" in found["disk"][1]


def test_a_learning_rate_at_which_nothing_is_learned_is_found(examine):
    found = examine("optimizer.lr=1e30", expect=2)
    assert wrong(found) == ["steps"]
    assert "diverged" in found["steps"][1]


def test_a_cache_of_another_teacher_is_found(examine, in_process, outputs, tmp_path):
    other = f"paths.outputs={tmp_path}"
    in_process("stage=transfer", "transfer=cached", "teacher.max_steps=2", other)
    (cache,) = (f.parent for f in tmp_path.glob("artifacts/predictions/*/manifest.json"))
    found = examine("transfer=cached", f"transfer.cache={cache}", expect=2)
    assert wrong(found) == ["cache"]
    assert "was made from another teacher" in found["cache"][1]


def test_of_a_sweep_the_jobs_that_are_not_well_are_named(in_process, outputs):
    many = ["hydra.mode=MULTIRUN", "stage=doctor", *LONGER, f"paths.outputs={outputs}"]
    own = ["transfer=cached", "loss=forward_kl,jensen_shannon"]
    done = in_process(*many, *own, expect=2)
    assert done.stdout.count("WRONG") == 1
    assert "1 of 12 checks failed: settings" in done.stdout
    assert not (outputs / "sweeps").exists()
