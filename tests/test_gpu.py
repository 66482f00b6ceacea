"""What only a GPU can show. `pytest -m gpu`, where there is one."""

import json

import lightning as L
import pytest
import torch

from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective
from lightning_distill.models import sizes
from lightning_distill.models.frozen import Frozen
from lightning_distill.training.student import StudentModule
from lightning_distill.transfer.online import Online

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = ["trainer=gpu", "loss.temperature=2"]


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("transfer", ["online", "cached", "sequence", "on_policy"])
def test_every_transfer_runs_as_trainer_gpu_sets_it(command, tmp_path, transfer):
    command(*GPU, f"transfer={transfer}", f"hydra.run.dir={tmp_path}")
    assert results(tmp_path)["status"] == "finished"


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.gradient_checkpointing=true"],
        ["trainer.compile=true"],
        ["teacher.device=cpu"],
        ["trainer.matmul_precision=high", "trainer.precision=32-true"],
    ],
    ids=lambda o: o[0],
)
def test_what_changes_speed_or_memory_changes_no_result_much(command, tmp_path, overrides):
    same = [*GPU, f"paths.outputs={tmp_path}"]
    command(*same, f"hydra.run.dir={tmp_path / 'plain'}")
    command(*same, *overrides, f"hydra.run.dir={tmp_path / 'other'}")
    plain, other = (results(tmp_path / name)["student"]["nll"] for name in ("plain", "other"))
    assert other == pytest.approx(plain, rel=5e-2)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_gpus_give_the_run_of_one(command, tmp_path, trainer):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    two = [f"trainer={trainer}", "trainer.devices=2", "data.batch_size=2"]
    found = {}
    for name, overrides in (("one", ["trainer=gpu"]), ("two", two)):
        where = [f"paths.outputs={tmp_path / name}", f"hydra.run.dir={tmp_path / name}"]
        command(*overrides, "trainer.precision=32-true", *where)
        found[name] = results(tmp_path / name)["student"]["nll"]
    assert found["two"] == pytest.approx(found["one"], rel=1e-4)


def test_a_step_that_is_not_logged_never_waits_for_the_gpu(make_data, tmp_path):
    """CUDA tells of every call that waits, from the third step to the ninth; the tenth logs."""
    data = make_data()

    class Watched(StudentModule):
        def training_step(self, batch, index):
            if index == 2:
                torch.cuda.set_sync_debug_mode("error")
            if index == 8:
                torch.cuda.set_sync_debug_mode("default")
            return super().training_step(batch, index)

    module = Watched(
        sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer),
        [Frozen(sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer), len(data.tokenizer))],
        Objective(forward_kl, 2.0, 0.5, 1.0, "labels"),
        Online(None),
        lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        len(data.tokenizer),
        shifted_labels=True,
    )
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        log_every_n_steps=10,
        gradient_clip_val=1.0,
        max_steps=12,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
    )
    try:
        trainer.fit(module, datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
