"""Settings that follow from what is trained, in the composed config."""

import json

import pytest
from hydra import compose, initialize_config_dir

from lightning_distill.cli import app  # noqa: F401  registers the resolvers
from lightning_distill.config.catalog import CONF
from lightning_distill.config.settings import plain_settings
from lightning_distill.config.usual import USUAL, warnings_of_rates, what_is_trained

PRETRAINED = ["student=pretrained", "student.name=small"]
BIG = ["teacher=pretrained", "teacher.name=big"]
PART = ["student.initialize=teacher_layers", "student.layers=2"]
KINDS = {
    "size": [],
    "pretrained": PRETRAINED,
    "part": [*BIG, *PART],
    "small_part": ["teacher=s", *PART],
    "adapters": [*PRETRAINED, "student.lora.rank=4"],
}
OF_A_SIZE = {"sequence_length": 128, "batch_size": 4, "max_steps": 1000}


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["logger=none", *overrides])


def values(cfg):
    return {
        "lr": cfg.optimizer.lr,
        "pct_start": cfg.schedule.pct_start,
        "sequence_length": cfg.data.sequence_length,
        "batch_size": cfg.data.batch_size,
        "max_steps": cfg.student.max_steps,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_usual_values(kind):
    cfg = composed(*KINDS[kind])
    assert what_is_trained(cfg, "student") == kind
    assert values(cfg) == {key: one.get(kind, OF_A_SIZE.get(key)) for key, one in USUAL.items()}
    assert cfg.schedule.max_lr == cfg.optimizer.lr


def test_the_config_of_a_job_shows_the_values_and_not_where_they_come_from(in_process):
    shown = in_process("--cfg", "job", *KINDS["adapters"], tiny=False).stdout
    assert "lr: 0.0002" in shown
    assert "usual" not in shown


def test_an_override_and_a_file_win(tmp_path):
    cfg = composed(*PRETRAINED, "optimizer.lr=3e-5", "data.batch_size=2")
    assert (cfg.optimizer.lr, cfg.data.batch_size, cfg.data.sequence_length) == (3e-5, 2, 512)
    assert composed("experiment=distilbert", *BIG).optimizer.lr == 2e-3


def test_a_teacher_has_values_of_its_own():
    cfg = composed(*BIG, "teacher.max_steps=5")
    assert cfg.teacher.optimizer.lr == USUAL["lr"]["pretrained"]
    assert cfg.optimizer.lr == USUAL["lr"]["size"]
    cfg = composed(*PRETRAINED)
    assert cfg.teacher.optimizer.lr == USUAL["lr"]["size"]


def test_a_part_of_a_teacher_from_scratch_has_the_lengths_of_one():
    found = values(composed("teacher=s", *PART))
    assert found == {"lr": USUAL["lr"]["small_part"], "pct_start": 0.0501, **OF_A_SIZE}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_far_above_the_usual_one_is_warned_about(kind):
    usual = USUAL["lr"][kind]
    for rate, warns in ((10 * usual, 0), (10.1 * usual, 1), (1e-9, 0)):
        settings = plain_settings(composed(*KINDS[kind], f"optimizer.lr={rate}"))
        found = list(warnings_of_rates(settings))
        assert len(found) == warns
        assert all(f"optimizer.lr={rate:g} is more than 10 times" in one for one in found)


def test_only_rates_of_adam_that_train_something_are_compared():
    sgd = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.fused"]
    settings = plain_settings(composed(*PRETRAINED, *sgd, "optimizer.lr=0.1"))
    assert not list(warnings_of_rates(settings))
    settings = plain_settings(composed(*BIG, "teacher.optimizer.lr=0.1"))  # teacher.max_steps=0
    assert not list(warnings_of_rates(settings))


@pytest.mark.parametrize("size", ["xs", "s", "m"])
def test_the_numbers_of_a_size_say_nothing_of_a_part(size):
    student = composed(f"student={size}", *BIG, "student.initialize=teacher_layers").student
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    assert [student[key] for key in keys] == [None] * 4


def test_numbers_that_are_set_stay():
    student = composed(*BIG, *PART, "student.hidden_size=128", "student=s").student
    assert (student.hidden_size, student.num_attention_heads) == (128, None)
    assert composed("student=s", "student.hidden_size=96").student.num_hidden_layers == 4
    assert composed("experiment=layers", *PART).student.num_hidden_layers == 2


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["student.lora.rank=16"]], ids=["all weights", "adapters"])
def test_a_pretrained_student_is_not_worse_after_a_few_steps(lora, in_process, tmp_path):
    """The demo's teacher in small, as the student of itself, on labels."""
    outputs = f"paths.outputs={tmp_path}"
    in_process("stage=teacher", "teacher.max_steps=300", outputs, f"hydra.run.dir={tmp_path / 't'}")
    (teacher,) = tmp_path.glob("artifacts/teacher/*/")
    in_process(
        "teacher=pretrained", f"teacher.name={teacher}", "student=pretrained",
        f"student.name={teacher}", "loss.alpha=0", "student.max_steps=60", *lora,
        "teacher.max_steps=0", outputs, f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["student"]["nll"] <= results["teacher"]["nll"]
