"""Steps with NaN or Inf are skipped, counted and recorded; too many of them end a training."""

import json
import shutil

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from lightning_distill.errors import ConfigError
from lightning_distill.models import sizes
from lightning_distill.training.teacher import TeacherModule

OPTIMIZERS = {
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "plain": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=False),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


class Poison(Callback):
    """Sets one element of the gradient to NaN or Inf, in some steps."""

    def __init__(self, steps, value):
        self.steps, self.value = steps, value

    def on_after_backward(self, trainer, module):
        if trainer.global_step + 1 in self.steps:
            next(module.parameters()).grad.view(-1)[7] = self.value


@pytest.fixture
def train(make_data, tmp_path):
    data = make_data()
    blocks = [data.examples("train")[i] for i in range(8)]

    def train(numbers, poisoned=(), value=float("nan"), optimizer="fused", most=2, **settings):
        torch.manual_seed(1)
        model = sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer)
        module = TeacherModule(
            model,
            OPTIMIZERS[optimizer],
            lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            len(data.tokenizer),
            shifted_labels=True,
        )
        module.guard.max_in_a_row, module.guard.file = most, tmp_path / "skipped.jsonl"
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=len(numbers) // settings.get("accumulate_grad_batches", 1),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            gradient_clip_val=1.0,
            callbacks=[Poison(poisoned, value), *settings.pop("callbacks", [])],
            **{"log_every_n_steps": 1} | settings,
        )
        trainer.fit(module, DataLoader([blocks[n] for n in numbers], batch_size=1))
        return module, trainer

    return train


def weights_of(module):
    return {name: value.clone() for name, value in module.model.state_dict().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_skipped_step_changes_nothing(train, tmp_path, optimizer, value):
    poisoned, _ = train([0, 1, 2, 3, 4, 5], (3,), value, optimizer)
    without, _ = train([0, 1, 3, 4, 5], (), value, optimizer)
    assert poisoned.guard.count == 1
    assert without.guard.count == 0
    for name, value in weights_of(without).items():
        assert torch.equal(value, weights_of(poisoned)[name])
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3
    assert json.loads(line)["examples"] == [2]


def test_all_micro_batches_of_a_skipped_step_are_skipped_and_recorded(train, tmp_path):
    poisoned, trainer = train([0, 1, 2, 3, 4, 5], (2,), accumulate_grad_batches=2)
    without, _ = train([0, 1, 4, 5], accumulate_grad_batches=2)
    for name, value in weights_of(without).items():
        assert torch.equal(value, weights_of(poisoned)[name])
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["examples"] == [2, 3]
    assert trainer.logged_metrics["train/skipped_steps"] == 1
    assert trainer.logged_metrics["train/loss"].isfinite()


def test_more_consecutive_skipped_steps_than_allowed_end_the_training(train):
    apart, _ = train(range(8), (1, 2, 4, 5, 7))
    assert apart.guard.count == 5
    with pytest.raises(ConfigError, match="in 3 consecutive steps, up to step 5; the examples"):
        train(range(8), (3, 4, 5))
    with pytest.raises(ConfigError, match=r"in step 4; the examples are recorded"):
        train(range(8), (4,), most=0)


def test_a_training_that_ends_with_nan_is_refused(train):
    with pytest.raises(ConfigError, match=r"in 2 consecutive steps, up to step 6"):
        train(range(6), (5, 6))


class Blind(Callback):
    """Makes a model output NaN during one step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step + 1 == self.step:
            self.kept = module.model.model.norm.weight.data.clone()
            module.model.model.norm.weight.data.fill_(float("nan"))

    def on_after_backward(self, trainer, module):
        if trainer.global_step + 1 == self.step:
            module.model.model.norm.weight.data.copy_(self.kept)


def test_logged_means_leave_skipped_steps_out(train):
    _, with_it = train([0, 1, 2], callbacks=[Blind(2)], log_every_n_steps=3)
    _, without = train([0, 2], log_every_n_steps=2)
    for name in ("train/loss", "train/hard", "train/gradient_norm"):
        assert with_it.logged_metrics[name] == without.logged_metrics[name], name


@pytest.mark.slow
def test_a_teacher_with_nan_logits_is_named(in_process, tmp_path):
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    in_process("stage=teacher", outputs)
    (teacher,) = (tmp_path / "outputs" / "artifacts" / "teacher").glob("*/")
    shutil.copytree(teacher, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    broken = ["teacher=pretrained", f"teacher.name={tmp_path / 'broken'}", "teacher.max_steps=0"]
    folder = tmp_path / "run"
    done = in_process(*broken, outputs, f"hydra.run.dir={folder}", "max_skipped_steps=3", expect=2)
    assert "NaN or Inf in 4 consecutive steps, up to step 4, from the first" in done.stderr
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert {json.loads(line)["loss"] for line in lines} == {"nan"}
