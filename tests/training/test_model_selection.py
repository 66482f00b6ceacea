"""Which weights a training keeps, when it ends, and that a killed one ends at the same ones."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from lightning_distill.distributed.topology import Hardware
from lightning_distill.models import lora, sizes
from lightning_distill.training.checkpoint_io import BEST, LAST, restore_newest
from lightning_distill.training.fit import fit, save_trained
from lightning_distill.training.model_selection import ModelSelection
from lightning_distill.training.teacher import TeacherModule
from lightning_distill.training.trainer import TrainerFactory

STEPS = 12


class Killed(BaseException):
    pass


class KillAt(Callback):
    """Ends the process, as far as a test can, at one call of a hook."""

    def __init__(self, hook, call):
        self.calls, self.call = 0, call
        setattr(self, hook, self.count)

    def count(self, *_, **__):
        self.calls += 1
        if self.calls == self.call:
            raise Killed


class Record(Callback):
    """The weights at each validation, and their nll."""

    def __init__(self, seen):
        self.seen = seen

    def on_validation_end(self, trainer, module):
        weights = {name: x.clone() for name, x in module.model.state_dict().items()}
        nll = float(trainer.callback_metrics["validation/nll"])
        self.seen.append((nll, trainer.global_step, weights))


@pytest.fixture
def train(make_data, tmp_path):
    """Trains for up to 12 steps, with a validation every step, from the folder's last checkpoint.

    Its learning rate is so high that the nll rises and falls.
    """
    data = make_data()

    def train(name, selection, *callbacks, rank=None, accumulate=1, lr=1.0):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        restore_newest(folder / "checkpoints")  # as a tracker does
        torch.manual_seed(1)
        model = sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer)
        lora.attach(model, rank and lora.LoRASettings(rank), "student", 0)
        module = TeacherModule(
            model,
            lambda groups: torch.optim.AdamW(groups, lr=lr, fused=True),
            lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            len(data.tokenizer),
            shifted_labels=True,
        )
        trainers = TrainerFactory(
            make=partial(L.Trainer, accelerator="cpu", limit_val_batches=1),
            hardware=Hardware("cpu"),
            batch_size=4,
            accumulate_grad_batches=accumulate,
            val_check_interval=accumulate,
            checkpoint_every_n_steps=3,
            callbacks=lambda: list(callbacks),
        )
        data.set_train_examples(None, seed=0)
        training = fit(trainers, module, data, STEPS, folder, [], "student", selection)
        lora.merge(module.model)
        save_trained(module.model, data, folder / "student")
        return training, load_file(folder / "student" / "model.safetensors")

    return train


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[n], others[n]) for n in some)


@pytest.mark.parametrize("settings", [{}, {"rank": 2, "lr": 5.0}, {"accumulate": 2}])
def test_the_weights_of_the_lowest_validation_nll_are_kept(train, settings, tmp_path):
    seen = []
    training, kept = train("best", ModelSelection(keep_best=True), Record(seen), **settings)
    last_training, last = train("last", ModelSelection(), **settings)
    _, step, weights = min(seen, key=lambda one: one[0])
    assert len(seen) == STEPS
    assert training.kept_step == step < STEPS == training.steps == last_training.kept_step
    assert not equal(kept, last)
    if "rank" not in settings:  # adapters are merged before the model is saved
        assert equal(kept, {name: weights[name] for name in kept})
    files = {file.name for file in (tmp_path / "best" / "checkpoints").iterdir()}
    assert files == {LAST, BEST}
    assert [f.name for f in (tmp_path / "last" / "checkpoints").iterdir()] == [LAST]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_ends_after_so_many_validations_without_a_lower_nll(train, patience):
    seen = []
    training, _ = train("run", ModelSelection(stop_after=patience), Record(seen))
    values, lowest, waited = [nll for nll, *_ in seen], math.inf, 0
    for number, nll in enumerate(values, start=1):
        waited = 0 if nll < lowest else waited + 1
        lowest = min(lowest, nll)
        assert (waited == patience) == (number == len(values) and training.steps < STEPS)
    assert training.steps == len(values) == training.kept_step


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"rank": 2, "lr": 5.0}, {"accumulate": 2, "lr": 3.0}])
def test_a_training_killed_anywhere_ends_at_the_same_best_weights(train, settings, tmp_path):
    selection = ModelSelection(keep_best=True, stop_after=4)
    whole = train("whole", selection, **settings)
    assert 0 < whole[0].kept_step < whole[0].steps < STEPS
    batches = whole[0].steps * settings.get("accumulate", 1)
    moments = [("on_train_batch_end", n) for n in range(1, batches + 1)]
    moments += [("on_validation_end", n) for n in range(1, whole[0].steps + 1)]
    moments += [("on_train_epoch_end", 1), ("teardown", 1)]
    for moment in moments[:: 3 if settings else 1]:
        name = "{}-{}".format(*moment)
        with pytest.raises(Killed):
            train(name, selection, KillAt(*moment), **settings)
        training, weights = train(name, selection, **settings)
        assert training == whole[0], moment
        assert equal(weights, whole[1]), moment
        again = train(name, selection, **settings)  # killed while it was evaluated
        assert again[0] == whole[0]
        assert equal(again[1], whole[1]), moment


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_without_its_best_weights_a_training_starts_anew(train, how, tmp_path, caplog):
    selection = ModelSelection(keep_best=True)
    whole = train("whole", selection)
    with pytest.raises(Killed):
        train("run", selection, KillAt("on_train_batch_end", 11))
    best = tmp_path / "run" / "checkpoints" / BEST
    if how == "damaged":
        best.write_bytes(best.read_bytes()[:-100])
    else:
        best.unlink()
    training, weights = train("run", selection)
    assert "training starts anew" in caplog.text
    assert "resuming" not in caplog.text
    assert training == whole[0]
    assert equal(weights, whole[1])


class TimeIsUp(Callback):
    """As trainer.max_time does of a run that is resumed after it."""

    def on_fit_start(self, trainer, module):
        trainer.should_stop = True


def test_a_training_without_a_validation_keeps_its_last_weights(train, caplog):
    training, weights = train("best", ModelSelection(keep_best=True), TimeIsUp())
    assert training.steps == training.kept_step == 0
    assert equal(weights, train("last", ModelSelection(), TimeIsUp())[1])
    assert "had no validation" in caplog.text
    assert "student: cut short at step 0 of 12" in caplog.text
