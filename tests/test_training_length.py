"""How long a student trains: passes over its transfer set, and trainings that are cut short."""

import json
import math
from collections import Counter
from typing import ClassVar

import pytest
import torch
import yaml
from conftest import curve
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

STEPLESS = "student.max_steps=null"  # the tests' commands set 12


class Seen(Callback):
    """The examples of each batch, by their index in the split."""

    blocks: ClassVar[list[int]] = []
    warnings: ClassVar[list[str]] = []  # of the last run, about its length

    def on_train_batch_start(self, trainer, module, batch, index):
        if type(module).__name__ == "StudentModule":
            Seen.blocks += batch["block"].tolist()


@pytest.fixture
def train(in_process, tmp_path, monkeypatch):
    """Runs a job; returns its folder, its results, and the examples that its student trained on."""
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", "test_training_length")

    def run(name, *overrides):
        Seen.blocks = []
        folder = tmp_path / name
        done = in_process(
            *(f"paths.outputs={tmp_path}", f"hydra.run.dir={folder}"),
            "+trainer.callbacks=[{_target_: test_training_length.Seen}]",
            *overrides,
        )
        Seen.warnings = [line for line in done.stdout.splitlines() if "cut short" in line]
        return folder, json.loads((folder / "results.json").read_text()), Seen.blocks

    return run


def weights(folder):
    return load_file(folder / "student" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "passes", "more"),
    [
        ("2", 2, ["transfer=online"]),
        ("0.5", 0.5, ["transfer=cached", "transfer.stored=topk", "transfer.k=5"]),
        ("1", 1, ["transfer=online", "trainer.accumulate_grad_batches=3"]),
        ("0.1", 0.1, ["transfer=online", "data.batch_size=1", "transfer.num_blocks=30"]),
    ],
)
def test_an_epoch_sees_each_example_of_the_transfer_set_once(train, epochs, passes, more):
    sizes = ["data.batch_size=4", "transfer.num_blocks=24", *more]
    blocks = 30 if "transfer.num_blocks=30" in more else 24
    _, results, seen = train("run", STEPLESS, f"student.epochs={epochs}", *sizes)
    counts = Counter(seen)
    assert set(counts) <= set(range(blocks))
    assert len(seen) == passes * blocks
    if passes >= 1:
        assert set(counts.values()) == {passes}
        assert len(counts) == blocks
    step = (1 if blocks == 30 else 4) * (3 if "trainer.accumulate_grad_batches=3" in more else 1)
    steps = int(passes * blocks / step)
    assert results["training"] == {"steps": steps, "max_steps": steps, "kept_step": steps}


@pytest.mark.slow
def test_the_last_step_of_an_epoch_is_a_full_batch(train):
    _, results, seen = train(
        *("run", STEPLESS, "student.epochs=1"),
        *("data.batch_size=5", "transfer.num_blocks=24"),
    )
    assert results["training"]["steps"] == math.ceil(24 / 5)
    assert len(seen) == 25
    assert len(set(seen[:24])) == 24


@pytest.mark.slow
def test_epochs_are_the_run_of_as_many_steps_to_the_last_bit(train):
    """The schedule decays over the derived steps, too."""
    same = ["data.batch_size=4", "transfer.num_blocks=24", "trainer.log_every_n_steps=1"]
    by_epochs, one, _ = train("epochs", STEPLESS, "student.epochs=1.5", *same, "logger=csv")
    by_steps, two, _ = train("steps", "student.max_steps=9", *same, "logger=csv")
    assert one["student"] == two["student"]
    rates = curve(by_epochs, "train/learning_rate")
    assert rates == curve(by_steps, "train/learning_rate")
    assert rates[-1] < 0.1 * max(rates)
    assert all(torch.equal(x, weights(by_steps)[name]) for name, x in weights(by_epochs).items())
    saved = yaml.safe_load((by_epochs / ".hydra" / "config.yaml").read_text())["student"]
    assert (saved["max_steps"], saved["epochs"]) == (None, 1.5)


@pytest.mark.slow
def test_epochs_count_the_sequences_that_the_teacher_generated(train):
    prompts = ["transfer=sequence", "transfer.prompt_length=4", "transfer.num_sequences=32"]
    _, results, seen = train(
        "run", STEPLESS, "student.epochs=2", *prompts, "transfer.mix=0.5", "data.batch_size=4"
    )
    examples = results["training"]["steps"] * 4
    assert len(seen) == examples
    half = Counter(seen[: examples // 2])  # as many blocks of the data as generated ones
    assert max(half.values()) == 2


@pytest.mark.slow
def test_a_teacher_trains_for_epochs(in_process, tmp_path):
    lengths = ("teacher.max_steps=null", "teacher.epochs=0.5", "data.batch_size=8")
    said = in_process("stage=teacher", *lengths, f"paths.outputs={tmp_path}").stdout
    (manifest,) = tmp_path.glob("artifacts/teacher/*/manifest.json")
    training = json.loads(manifest.read_text())["content"]["training"]
    assert f"training the teacher: {training['max_steps']} steps" in said
    train_tokens = int(said.partition("tokens: ")[2].partition(" train")[0].replace(",", ""))
    blocks = math.ceil((train_tokens - 1) / 32)
    assert training["steps"] == math.ceil(0.5 * blocks / 8)


# What the command and a file set, and what max_steps and epochs then are.
PRECEDENCE = {
    "a default": ([], "max_steps: 12", (12, None)),
    "epochs of the command": (["student.epochs=3"], "max_steps: 9", (None, 3)),
    "epochs of a file": ([], "epochs: 2", (None, 2)),
    "steps of the command": (["student.max_steps=7"], "epochs: 2", (7, None)),
    "steps set to null": ([STEPLESS], "epochs: 2", (None, 2)),
}


@pytest.mark.parametrize("case", PRECEDENCE)
def test_the_command_line_counts_before_a_file_and_epochs_before_steps(in_process, tmp_path, case):
    given, in_file, expected = PRECEDENCE[case]
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\nstudent:\n  {in_file}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    settings = ["experiment=mine", "student=xs", "data=text", "data.path=x.jsonl", *given]
    flags = [f"--config-dir={tmp_path}", "--cfg=job"]
    said = in_process(*flags, *settings, tiny=False).stdout
    student = yaml.safe_load(said)["student"]
    assert (student["max_steps"], student["epochs"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "steps"),
    [
        ("+trainer.max_time='00:00:00:00'", 0),
        ("+trainer.limit_train_batches=3", 3),
        ("+trainer.fast_dev_run=true", 1),
        (
            "trainer.callbacks=[{_target_: lightning.pytorch.callbacks.EarlyStopping, "
            "monitor: validation/nll, min_delta: 9, patience: 1}]",
            6,
        ),
    ],
    ids=["max_time", "limit", "fast_dev_run", "callback"],
)
def test_a_training_that_is_cut_short_says_so_once(train, cut, steps):
    _, results, _ = train("run", cut, "loss.alpha=0", "student.max_steps=12")
    assert results["training"] == {"steps": steps, "max_steps": 12, "kept_step": steps}
    (warning,) = Seen.warnings
    assert f"student: cut short at step {steps} of 12" in warning


@pytest.mark.slow
def test_a_whole_training_warns_of_nothing(train):
    _, results, _ = train("run", "loss.alpha=0")
    assert results["training"] == {"steps": 12, "max_steps": 12, "kept_step": 12}
    assert not Seen.warnings
