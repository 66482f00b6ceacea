import json

import lightning as L
import pytest
import torch

from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.hidden_states import HiddenStates
from lightning_distill.losses.objective import Objective
from lightning_distill.models import sizes
from lightning_distill.models.frozen import Frozen
from lightning_distill.training.student import StudentModule
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.base import Workspace
from lightning_distill.transfer.on_policy import OnPolicy
from lightning_distill.transfer.online import Online

P = 8  # tokens of a prompt


@pytest.fixture
def make(make_data, tmp_path):
    """A student with its transfer, and the data that it learns from."""

    def make(transfer, isolate=False, folder=tmp_path):
        data = make_data(isolate_documents=isolate)
        torch.manual_seed(1)
        big = sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer)
        teacher = Teacher([], [1.0], "t", 0.0, data)
        transfer.prepare(data, teacher, Workspace(None, folder, None))
        module = StudentModule(
            sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer),
            [Frozen(big, len(data.tokenizer))],
            Objective(forward_kl, 2.0, 1.0, 1.0, "labels"),
            transfer,
            lambda groups: torch.optim.AdamW(groups, lr=1e-2),
            lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            len(data.tokenizer),
            "t",
            shifted_labels=True,
        )
        return module, data

    return make


def fit(module, data, folder, steps=5, resume=None):
    data.set_train_examples(module.transfer.dataset(data), seed=0)
    checkpoints = L.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=2, save_top_k=-1
    )
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, log_every_n_steps=2,
        callbacks=[checkpoints],
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])


def composed(module, data, rows=4):
    """What the student makes of the first blocks."""
    batch = torch.utils.data.default_collate([data.examples("train")[i] for i in range(rows)])
    module.trainer = L.Trainer(accelerator="cpu", logger=False, log_every_n_steps=0)
    return batch, module.transfer.transform_batch(module, batch)


@pytest.mark.parametrize("isolate", [False, True])
def test_what_counts_is_what_the_student_wrote_behind_the_prompt(make, isolate):
    module, data = make(OnPolicy(None, 1.0, P, 1.0), isolate)
    batch, found = composed(module, data)
    eos = data.tokenizer.eos_token_id
    assert found["by_student"]
    assert not torch.equal(found["input_ids"], batch["input_ids"])
    for row in range(4):
        ids, labels = found["input_ids"][row], found["labels"][row]
        kept = (labels != IGNORED).nonzero()[:, 0].tolist()
        first = kept[0] + 1  # of the written tokens
        assert kept == list(range(first - 1, kept[-1] + 1))
        begins = P - first  # of the prompt in its block: the last document's
        assert begins == 0 if not isolate else batch["position_ids"][row, begins] == 0
        assert torch.equal(ids[:first], batch["input_ids"][row, begins:P])
        assert torch.equal(labels[kept[:-1]], ids[first : kept[-1] + 1])
        assert kept[-1] == len(ids) - 1 or labels[kept[-1]] == eos
    assert torch.equal(found["position_ids"], torch.arange(32).expand(4, -1))


def test_only_the_teacher_grades_it(make):
    module, data = make(OnPolicy(None, 1.0, P, 1.0))
    _, batch = composed(module, data)
    student = module(batch)
    said, known = module.transfer.teacher_predictions(module.teachers, batch)
    found = module.objective.terms(
        student, said, batch["labels"], known, use_labels=False, details=True
    )
    assert set(found.parts) == {"soft"}
    assert "nll" not in found.details
    kept = batch["labels"] != IGNORED
    q = (student.logits()[kept].double() / 2).log_softmax(-1)
    p = (said[0].logits()[kept].double() / 2).log_softmax(-1)
    longhand = 4 * (p.exp() * (p - q)).sum()
    torch.testing.assert_close(found.total.double(), longhand, rtol=1e-5, atol=0)


def test_with_no_share_of_its_own_it_is_online(make, tmp_path):
    own, online = make(OnPolicy(None, 0.0, P, 1.0)), make(Online(None))
    assert torch.equal(fit(*own, tmp_path / "a"), fit(*online, tmp_path / "b"))


def test_without_a_teacher_it_is_ordinary_training(make, tmp_path):
    found = []
    for transfer in (OnPolicy(None, 1.0, P, 1.0), Online(None)):
        module, data = make(transfer)
        transfer.data, module.teachers = None, torch.nn.ModuleList()  # nobody has prepared it
        module.objective = Objective(forward_kl, 2.0, 0.0, 1.0, "labels")
        found.append(fit(module, data, tmp_path / type(transfer).__name__))
    assert torch.equal(*found)


def test_about_its_share_of_the_steps_is_the_students(make, monkeypatch):
    module, data = make(OnPolicy(None, 0.3, P, 1.0))
    taken = 0
    for step in range(200):
        monkeypatch.setattr(StudentModule, "global_step", step)
        taken += "by_student" in composed(module, data, rows=1)[1]
    assert 40 <= taken <= 80


def test_a_resumed_run_writes_and_ends_as_an_undisturbed_one(make, tmp_path):
    whole = fit(*make(OnPolicy(None, 0.7, P, 1.0)), tmp_path / "whole")
    torch.manual_seed(99)  # the dice are the step's own
    again = make(OnPolicy(None, 0.7, P, 1.0))
    resumed = fit(*again, tmp_path / "again", resume=tmp_path / "whole" / "step=2.ckpt")
    assert torch.equal(whole, resumed)


def test_it_learns_to_write_what_its_teacher_approves_of(make, tmp_path):
    module, data = make(OnPolicy(None, 1.0, P, 1.0))
    module.teachers[0].model.config.logits_scaling = 0.1  # an untrained one has no opinions
    for frozen in module.teachers:
        frozen.predict.__init__(frozen.model, len(data.tokenizer))

    def kl():
        _, batch = composed(module, data)
        said, known = module.transfer.teacher_predictions(module.teachers, batch)
        found = module.objective.terms(module(batch), said, batch["labels"], known, False, True)
        return float(found.details["kl"])

    before = kl()
    fit(module, data, tmp_path, steps=40)
    assert kl() < 0.5 * before


def test_what_it_writes_can_be_read(make, tmp_path):
    module, data = make(OnPolicy(None, 1.0, P, 1.0))
    fit(module, data, tmp_path / "checkpoints", steps=4)
    lines = [json.loads(line) for line in (tmp_path / "generated.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]  # logged at every second step
    assert all(line["prompt"] for line in lines)


def test_without_a_term_that_grades_predictions_it_is_refused(make):
    module, data = make(OnPolicy(None, 1.0, P, 1.0))
    inside = HiddenStates(1.0, "last", "mse")
    objective = Objective(forward_kl, 1.0, 0.0, 1.0, "labels", hidden=inside)
    with pytest.raises(ConfigError, match=r"Set loss.alpha above 0"):
        module.transfer.check(objective, data, data)


@pytest.mark.slow
def test_a_run_finishes_and_its_text_is_in_its_folder(in_process, tmp_path):
    in_process(
        "transfer=on_policy", f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert (tmp_path / "run" / "generated.jsonl").read_text().count("\n") >= 1
