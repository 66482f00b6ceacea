import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_distill.errors import ConfigError
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective, nll
from lightning_distill.models import sizes
from lightning_distill.models.frozen import Frozen
from lightning_distill.training.student import StudentModule
from lightning_distill.transfer.online import Online


@pytest.fixture
def data(make_data):
    return make_data()


def make_student(
    data,
    teacher_hash="t1",
    alpha=1.0,
    teacher=True,
    dropout=0.0,
    hard=1.0,
    sharpness=1.0,
    split=True,
):
    torch.manual_seed(1)
    big = sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer)
    big.config.attention_dropout = dropout
    big.config.logits_scaling = 1 / sharpness
    for layer in big.model.layers:
        layer.self_attn.attention_dropout = dropout
    return StudentModule(
        sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer),
        [Frozen(big, len(data.tokenizer), split)] if teacher else [],
        Objective(forward_kl, 2.0, alpha, hard, "labels", fused=split),
        Online(None),
        lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        len(data.tokenizer),
        teacher_hash,
        shifted_labels=True,
    )


def fit(student, data, folder, steps=6, resume=None, every=3, accumulate=1):
    data.set_train_examples(None, seed=0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        limit_val_batches=1,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        ],
    )
    trainer.fit(student, datamodule=data, ckpt_path=resume)
    return trainer


def test_the_teacher_stays_in_eval_mode_and_unchanged(data, tmp_path):
    student = make_student(data, dropout=0.5)
    before = {k: v.clone() for k, v in student.teachers[0].model.state_dict().items()}
    fit(student, data, tmp_path)
    student.train()
    assert student.model.training
    assert not any(module.training for module in student.teachers[0].model.modules())
    for name, value in student.teachers[0].model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_teacher_is_not_optimized_and_gets_no_gradient(data, tmp_path):
    student = make_student(data)
    trainer = fit(student, data, tmp_path)
    optimized = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert optimized == {id(p) for p in student.model.parameters()}
    assert all(p.grad is None for p in student.teachers[0].model.parameters())


def test_the_checkpoint_holds_the_teachers_hash_instead_of_its_weights(data, tmp_path):
    student = make_student(data)
    fit(student, data, tmp_path)
    checkpoint = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"model.{k}" for k in student.model.state_dict()}
    assert checkpoint["teacher_hash"] == "t1"
    teacher_shapes = {p.shape for p in student.teachers[0].model.parameters()}
    moments = [s["exp_avg"] for s in checkpoint["optimizer_states"][0]["state"].values()]
    assert not {m.shape for m in moments} & {s for s in teacher_shapes if len(s) > 1}


def test_the_teacher_moves_with_its_student(data):
    student = make_student(data).to(torch.float64)
    assert {p.dtype for p in student.teachers[0].model.parameters()} == {torch.float64}
    assert {p.device.type for p in student.to("meta").teachers[0].model.parameters()} == {"meta"}


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(data, tmp_path):
    whole = make_student(data)
    fit(whole, data, tmp_path / "whole", steps=7)
    resumed = make_student(data)
    with torch.no_grad():  # the initial weights must not matter
        for p in resumed.model.parameters():
            p.zero_()
    fit(resumed, data, tmp_path / "resumed", steps=7, resume=tmp_path / "whole" / "step=3.ckpt")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_is_refused_under_another_teacher(data, tmp_path):
    fit(make_student(data), data, tmp_path)
    with pytest.raises(ConfigError, match="distilled from teacher t1, not from this run's, t2"):
        fit(make_student(data, "t2"), data, tmp_path / "2", resume=tmp_path / "step=3.ckpt")


def test_alpha_zero_trains_without_a_teacher(data, tmp_path):
    with_none = make_student(data, None, alpha=0.0, teacher=False)
    fit(with_none, data, tmp_path)
    assert not with_none.teachers


def test_distillation_halves_the_kl_divergence_from_the_teacher(data, tmp_path):
    student = make_student(data, hard=0.0, sharpness=10.0)  # untrained logits are almost uniform
    batch = next(iter(data.val_dataloader()))

    def kl():
        teachers, _ = student.transfer.teacher_predictions(student.teachers, batch)
        terms = student.objective.terms(student(batch), teachers, batch["labels"], details=True)
        return float(terms.details["kl"])

    before = kl()
    fit(student, data, tmp_path, steps=60, every=60)
    assert kl() < 0.5 * before


def test_training_with_the_chunked_loss_ends_at_the_nll_of_the_plain_one(
    data, tmp_path, monkeypatch
):
    fused = sys.modules["lightning_distill.losses.chunked"]
    monkeypatch.setitem(fused.CHUNK, "cpu", 9 * 300)  # unequal chunks
    monkeypatch.setitem(fused.BLOCK, "cpu", 4 * 300)
    batch = next(iter(data.val_dataloader()))
    results = []
    for use in (True, False):
        student = make_student(data, split=use)
        assert (student.predict.head is None) is not use
        fit(student, data, tmp_path / str(use), steps=60, every=60)
        with torch.no_grad():
            total, tokens = nll(student(batch), batch["labels"])
        results.append(float(total / tokens))
    assert results[0] == pytest.approx(results[1], abs=1e-4)
