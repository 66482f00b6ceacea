"""The losses in real commands: schedules, terms inside the network, teachers of several kinds."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def run(in_process, outputs, tmp_path):
    """Runs one job on the module's artifacts. Returns its results and its folder."""

    def job(*overrides):
        in_process(
            *overrides, "logger=csv", f"paths.outputs={outputs}", f"hydra.run.dir={tmp_path}"
        )
        return json.loads((tmp_path / "results.json").read_text()), tmp_path

    return job


def curves(folder):
    with (folder / "metrics.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["train/loss"]]


def test_schedules_are_logged_as_they_change(run):
    _, folder = run(
        "loss.temperature={shape: linear, start: 4, end: 1}",
        "loss.alpha={shape: warmup, end: 0.5, steps: 6}",
        "loss.hard_weight=0",
    )
    rows = curves(folder)
    temperatures = [float(row["train/temperature"]) for row in rows]
    alphas = [float(row["train/alpha"]) for row in rows]
    # Logged at steps 4, 8 and 12 of 12, which follow 3, 7 and 11 finished ones.
    assert temperatures == pytest.approx([4 - 3 * done / 12 for done in (3, 7, 11)])
    assert alphas == pytest.approx([0.25, 0.5, 0.5])


def test_terms_inside_the_network_train_and_stay_out_of_the_student(run):
    found, folder = run("loss.hidden.weight=1", "loss.relations.weight=1", "loss=reverse_kl")
    first, *_, last = curves(folder)
    assert float(last["train/hidden"]) < float(first["train/hidden"])
    for name in ("hidden", "relations"):
        assert float(last[f"train/{name}_gradient_norm"]) > 0
    total = sum(float(last[f"train/{name}"]) for name in ("hard", "soft", "hidden", "relations"))
    assert float(last["train/loss"]) == pytest.approx(total, rel=1e-4)
    weights = load_file(folder / "student" / "model.safetensors")
    assert not [name for name in weights if "inside" in name or "projection" in name]
    assert sum(w.numel() for w in weights.values()) == found["student"]["parameters"]


def test_several_teachers_are_one_mixture_and_each_is_reused(run, in_process, outputs, tmp_path):
    both = "teacher.members=[{seed: 0}, {seed: 7}]"
    found, _ = run(both, "teacher.weights=[1, 3]")
    assert found["cost"]["teacher_seconds"] > 0
    alone = {}
    for seed in (0, 7):
        in_process(
            "stage=teacher", f"teacher.seed={seed}", f"paths.outputs={outputs}",
            f"hydra.run.dir={tmp_path / str(seed)}",
        )  # fmt: skip
        alone[seed] = json.loads((tmp_path / str(seed) / "results.json").read_text())
        assert alone[seed]["cost"]["teacher_seconds"] == 0  # the run before trained it
    nlls = [one["teacher"]["nll"] for one in alone.values()]
    parameters = [one["teacher"]["parameters"] for one in alone.values()]
    assert found["teacher"]["parameters"] == sum(parameters)
    # log is concave: a mixture is better than its members are on average.
    assert found["teacher"]["nll"] < (nlls[0] + 3 * nlls[1]) / 4


@pytest.fixture(scope="module")
def models(in_process, outputs):
    """Two models that somebody trained, with tokenizers of their own."""
    folders = []
    for vocabulary in (300, 340):
        folder = outputs / f"somebodys-{vocabulary}"
        in_process(
            "loss.alpha=0", f"data.vocab_size={vocabulary}", f"paths.outputs={outputs}",
            f"hydra.run.dir={folder}",
        )  # fmt: skip
        folders.append(folder / "student")
    return folders


@pytest.fixture
def across(text_file, models):
    """The settings of a teacher and a student with different tokenizers."""
    roles = zip(("teacher", "student"), models, strict=True)
    return [
        *(o for role, name in roles for o in (f"{role}=pretrained", f"{role}.name={name}")),
        "student.max_steps=12",
        "data=text",
        f"data.path={text_file}",
        "data.sequence_length=32",
        "trainer=cpu",
        "trainer.log_every_n_steps=4",
        "logger=csv",
    ]


def test_a_teacher_with_another_tokenizer_teaches_by_the_universal_loss(
    in_process, outputs, tmp_path, across
):
    in_process(
        *across, "loss=universal", f"paths.outputs={outputs}", f"hydra.run.dir={tmp_path}",
        tiny=False,
    )  # fmt: skip
    found = json.loads((tmp_path / "results.json").read_text())
    last = curves(tmp_path)[-1]
    assert 0 < float(last["train/soft"]) < 2
    assert 0.3 < float(last["train/known"]) <= 1
    # Each in its own tokens; what compares tokens is not said.
    assert found["student"]["bits_per_byte"] > 0
    assert found["teacher"]["bits_per_byte"] > 0
    assert "teacher_kl" not in found["student"]


def test_a_student_reads_what_a_teacher_with_another_tokenizer_wrote(
    in_process, outputs, tmp_path, across
):
    in_process(
        *across, "transfer=sequence", "loss=universal", "loss.alpha=0", f"paths.outputs={outputs}",
        f"hydra.run.dir={tmp_path}", tiny=False,
    )  # fmt: skip
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cost"]["transfer_seconds"] > 0
    assert (tmp_path / "generated.jsonl").read_text().count("\n") == 100


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=forward_kl", "Choose loss=universal"),
        ("loss=universal loss.hidden.weight=1", "their tokenizers differ"),
    ],
)
def test_what_needs_the_same_tokens_is_refused_in_a_line(
    in_process, outputs, across, override, message
):
    done = in_process(*across, *override.split(), f"paths.outputs={outputs}", tiny=False, expect=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_layer_that_is_not_there_is_refused_before_a_teacher_is_trained(in_process, tmp_path):
    done = in_process(
        "loss.hidden.weight=1", "loss.hidden.layers={1: 9}", f"paths.outputs={tmp_path}", expect=2
    )
    assert "the teacher has layers 1 to 2, there is no 9" in done.stderr
    assert not list(tmp_path.glob("artifacts/teacher/*"))


def test_the_checkpoint_of_a_run_with_projections_holds_them(in_process, outputs, tmp_path):
    in_process(
        "loss.hidden.weight=1", "checkpoint_every_n_steps=5", f"paths.outputs={outputs}",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    weights = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert [name for name in weights if name.startswith("intermediate.hidden.projections")]
