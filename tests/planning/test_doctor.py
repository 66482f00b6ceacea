"""`stage=doctor`: each mistake fails the check that is about it, and no other."""

import ast
import inspect
import json
import shutil
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from lightning_distill.data.packing import Blocks, check_targets
from lightning_distill.errors import ConfigError
from lightning_distill.planning import doctor, doctor_checks, doctor_context, dry_run_size
from lightning_distill.planning.doctor_checks import CHECKS, Check
from lightning_distill.planning.dry_run import quiet
from lightning_distill.progress import is_shown

NAMES = [check.name for check in CHECKS]
ROOT = Path(__file__).parents[2]


TEACHER_STEPS = ["teacher.max_steps=60"]


@pytest.fixture(scope="module")
def outputs(in_process, tmp_path_factory):
    """With a trained teacher."""
    folder = tmp_path_factory.mktemp("doctor") / "outputs"
    in_process("stage=teacher", *TEACHER_STEPS, f"paths.outputs={folder}")
    return folder


@pytest.fixture
def examine(in_process, outputs):
    """The mark and the message of each check."""

    def run(*overrides, expect=0):
        settings = ["stage=doctor", *TEACHER_STEPS, f"paths.outputs={outputs}", *overrides]
        done = in_process(*settings, expect=expect)
        lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        checks = {name: (mark, message) for mark, name, message in lines if name in NAMES}
        assert list(checks) == NAMES
        return checks

    return run


def failed(checks):
    return [name for name, (mark, _) in checks.items() if mark == "WRONG"]


def skipped(checks):
    return [name for name, (mark, _) in checks.items() if mark == "-"]


@pytest.fixture(scope="module")
def folder(outputs, tmp_path_factory):
    """The trained teacher, in a folder to load it from as a pretrained model."""
    (made,) = (f.parent for f in (outputs / "artifacts" / "teacher").glob("*/config.json"))
    copy = tmp_path_factory.mktemp("pretrained") / "trained"
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns("manifest.json", "metrics.csv"))
    return copy


def same(weight):
    return weight


@pytest.fixture
def pretrained(folder, tmp_path):
    """Overrides that make that model the teacher or the student, with changed weights."""

    def make(role, change=same):
        copy = tmp_path / f"{role}-{change.__name__}"
        shutil.copytree(folder, copy)
        weights = load_file(copy / "model.safetensors")
        changed = {name: change(weight).contiguous() for name, weight in weights.items()}
        save_file(changed, copy / "model.safetensors", {"format": "pt"})
        steps = ["teacher.max_steps=0"] if role == "teacher" else []
        return [f"{role}=pretrained", f"{role}.name={copy}", *steps]

    return make


def test_a_correct_command_passes_all_checks(examine):
    checks = examine("transfer=cached")
    assert not failed(checks)
    assert not skipped(checks)
    assert "to be made" in checks["cache"][1]


def test_a_missing_teacher_is_not_trained(examine, tmp_path):
    checks = examine(f"paths.outputs={tmp_path}")
    assert not failed(checks)
    assert skipped(checks) == ["teacher", "alignment"]
    assert not list((tmp_path / "artifacts").glob("teacher/*"))
    assert not list(tmp_path.rglob("results.json"))


def noise(weight):
    return torch.randn_like(weight)


def nan(weight):
    return weight * float("nan")


def test_a_teacher_worse_than_uniform_fails(examine, pretrained):
    checks = examine(*pretrained("teacher", noise), *pretrained("student"), expect=2)
    assert failed(checks) == ["teacher"]
    assert skipped(checks) == ["alignment"]
    assert "no better than uniform" in checks["teacher"][1]
    swapped = examine(*pretrained("teacher"), "student.max_steps=3", expect=0)
    assert not failed(swapped)


def blurred(weight):
    return 0.98 * weight


def test_a_teacher_worse_than_the_student_fails(examine, pretrained):
    checks = examine(*pretrained("teacher", blurred), *pretrained("student"), expect=2)
    assert failed(checks) == ["teacher"]
    assert "no better than the student" in checks["teacher"][1]


def test_a_teacher_with_nan_weights_fails(examine, pretrained):
    checks = examine(*pretrained("teacher", nan), expect=2)
    assert failed(checks)[0] == "teacher"
    assert "nan" in checks["teacher"][1]


def test_a_vocabulary_of_the_same_size_with_other_ids_fails(examine, pretrained, tmp_path):
    settings = [*pretrained("teacher"), *pretrained("student")]
    (file,) = (f for f in tmp_path.rglob("tokenizer.json") if f.parent.name.startswith("student"))
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    a, b = [token for token in vocab if len(token) > 1][:2]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    file.write_text(json.dumps(tokenizer))
    checks = examine(*settings, expect=2)
    assert failed(checks) == ["text"]
    assert "different vocabularies" in checks["text"][1]
    assert set(skipped(checks)) == set(NAMES) - {"device", "tracker", "text"}


def blocks(targets):
    count = len(targets)
    return Blocks(
        torch.arange(count), torch.zeros(count, dtype=torch.int32), 4, False, torch.tensor(targets)
    )


def test_a_split_without_labels_is_an_error():
    assert "35.0% of train" in check_targets(
        {"train": blocks([True, False, False, False, True] * 4)}
    )
    with pytest.raises(ConfigError, match="no token of the test split"):
        check_targets({"train": blocks([True] * 9), "test": blocks([False] * 9)})


class Shifted(Blocks):
    def __getitem__(self, index):
        block = super().__getitem__(index)
        return block | {"labels": block["input_ids"]}


def test_labels_that_are_not_the_next_tokens_are_an_error():
    checks = blocks([True] * 9)
    shifted = Shifted(checks.tokens, checks.documents, 4, False)
    with pytest.raises(ConfigError, match="6 labels of the train split are not the next"):
        check_targets({"train": shifted})


def test_a_missing_device_fails(examine):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    checks = examine("trainer=gpu", expect=2)
    assert failed(checks) == ["device"]
    assert {"steps", "disk", "memory"} <= set(skipped(checks))


def test_a_loss_that_the_cache_cannot_supply_fails(examine):
    checks = examine("transfer=cached", "loss=jensen_shannon", expect=2)
    assert failed(checks) == ["settings"]


def test_a_full_disk_fails(examine, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2000, 1000, 1000))
    checks = examine(expect=2)
    assert failed(checks) == ["disk"]
    assert "1.0 kB free" in checks["disk"][1]


def test_a_learning_rate_that_diverges_fails(examine):
    checks = examine("optimizer.lr=1e30", expect=2)
    assert failed(checks) == ["steps"]
    assert "diverged" in checks["steps"][1]


def test_a_cache_of_another_teacher_fails(examine, in_process, outputs, tmp_path):
    other = f"paths.outputs={tmp_path}"
    in_process("stage=transfer", "transfer=cached", "teacher.max_steps=2", other)
    (cache,) = (f.parent for f in tmp_path.glob("artifacts/predictions/*/manifest.json"))
    checks = examine("transfer=cached", f"transfer.cache={cache}", expect=2)
    assert failed(checks) == ["cache"]
    assert "was made from another teacher" in checks["cache"][1]


def test_a_sweep_names_the_jobs_that_fail(in_process, outputs):
    many = ["hydra.mode=MULTIRUN", "stage=doctor", *TEACHER_STEPS, f"paths.outputs={outputs}"]
    own = ["transfer=cached", "loss=forward_kl,jensen_shannon"]
    done = in_process(*many, *own, expect=2)
    assert done.stdout.count("WRONG") == 1
    assert "1 of 13 checks failed: settings" in done.stdout
    assert not (outputs / "sweeps").exists()


def test_a_sweep_without_mistakes_passes(in_process, outputs):
    many = ["hydra.mode=MULTIRUN", "stage=doctor", *TEACHER_STEPS, f"paths.outputs={outputs}"]
    done = in_process(*many, "loss.temperature=1,2", expect=0)
    assert done.stdout.count("ok    steps") == 2


def test_a_dry_run_shows_no_progress_bars(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert is_shown()
    with quiet():
        assert not is_shown()
    assert is_shown()


@contextmanager
def counted_tokens():
    """Tokens that any model reads, those of a training step three times for its backward pass."""
    tokens = []

    def count(module, args, kwargs, _):
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if not ids.is_meta:
                tokens.append(ids.numel() * (3 if torch.is_grad_enabled() else 1))

    hook = register_module_forward_hook(count, with_kwargs=True)
    try:
        yield tokens
    finally:
        hook.remove()


@pytest.mark.parametrize(("limit", "most"), [(None, 20), (0, 5)], ids=["small", "large"])
@pytest.mark.parametrize("transfer", ["online", "cached"])
def test_all_checks_together_cost_a_few_steps(
    examine, pretrained, monkeypatch, limit, most, transfer
):
    """Of models of the same size, so that tokens are what they cost."""
    batch_size, length = 32, 32
    if limit is not None:
        monkeypatch.setattr(dry_run_size, "LARGE", limit)
    models = [*pretrained("teacher"), *pretrained("student", blurred)]
    with counted_tokens() as tokens:
        checks = examine(*models, f"data.batch_size={batch_size}", f"transfer={transfer}")
    assert not failed(checks)
    assert 0 < sum(tokens) <= most * 3 * batch_size * length


def test_a_line_is_printed_before_the_next_check_begins(examine, monkeypatch):
    printed = []

    def check(context):
        printed.append(sys.stdout.getvalue())
        return "done"

    checks = (*doctor_checks.CHECKS[:3], *(Check(name, check) for name in NAMES[3:]))
    monkeypatch.setattr(doctor, "CHECKS", checks)
    examine()
    for number, before in enumerate(printed, 3):
        assert NAMES[number - 1] in before
        assert NAMES[number] not in before


def test_the_documentation_explains_each_line():
    page = (ROOT / "docs" / "how-to" / "plan-and-doctor.md").read_text()
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| ")]
    assert [row[0].strip("| `") for row in rows if row[0].strip("| `") in NAMES] == NAMES
    printed = "".join(row[1] for row in rows if len(row) == 4)
    for message in messages(doctor_checks) | messages(doctor_context):
        assert message in printed


def messages(module):
    """The longest literal part of each error that the module raises."""
    calls = (node.exc for node in ast.walk(ast.parse(inspect.getsource(module))) if raises(node))
    return {max(literals(call), key=len).strip(".: ") for call in calls if list(literals(call))}


def raises(node):
    return isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)


def literals(call):
    return (part.value for part in ast.walk(call) if isinstance(part, ast.Constant))
