"""Losses and gradients are means over the tokens of the global batch, however it is divided."""

import lightning as L
import pytest
import torch
from forked import as_ranks
from torch.utils.data import DataLoader

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.distributed import process_group
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective
from lightning_distill.models import sizes
from lightning_distill.models.frozen import Frozen
from lightning_distill.training.student import StudentModule
from lightning_distill.transfer.online import Online

RATE = 0.1


@pytest.fixture
def blocks(make_data):
    """Four blocks with very unequal numbers of unmasked tokens."""
    data = make_data()
    blocks = [data.examples("train")[i] for i in range(4)]
    for block, counted in zip(blocks, (32, 1, 7, 20), strict=True):
        block["labels"][counted:] = -100
    return data, blocks


def one_step(
    data, blocks, batch_size, clip=None, hard_target="labels", precision="32-true", fused=None
):
    torch.manual_seed(1)
    teacher = sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer)
    student = StudentModule(
        sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer),
        [Frozen(teacher, len(data.tokenizer))],
        Objective(forward_kl, 2.0, 0.5, 1.0, hard_target),
        Online(None),
        lambda groups: torch.optim.SGD(groups, lr=RATE, fused=fused),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        len(data.tokenizer),
        "t",
        shifted_labels=True,
    )
    before = [p.detach().clone() for p in student.parameters()]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=len(blocks) // batch_size,
        gradient_clip_val=clip,
        precision=precision,
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(student, DataLoader(blocks, batch_size=batch_size))
    steps = [b - p.detach() for b, p in zip(before, student.parameters(), strict=True)]
    return student, steps, trainer


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("hard_target", ["labels", "teacher"])
def test_accumulating_unequal_micro_batches_equals_one_batch(blocks, batch_size, hard_target):
    data, four = blocks
    _, whole, _ = one_step(data, four, 4, hard_target=hard_target)
    _, parts, _ = one_step(data, four, batch_size, hard_target=hard_target)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_step_follows_the_gradient_of_the_mean_over_all_tokens(blocks):
    data, four = blocks
    _, steps, _ = one_step(data, four, 1)
    torch.manual_seed(1)
    teacher = sizes.decoder(sizes.Size(32, 2, 2, 64), data.tokenizer).eval()
    model = sizes.decoder(sizes.Size(16, 1, 2, 64), data.tokenizer)
    total, tokens = 0.0, 0
    for block in four:
        inputs = {k: v[None] for k, v in block.items() if k != "labels"}
        keep = block["labels"] != -100
        z = model(**inputs).logits[0][keep]
        y = teacher(**inputs).logits[0][keep].detach()
        p_T, log_q_T = (y / 2).softmax(-1), (z / 2).log_softmax(-1)
        hard = -z.log_softmax(-1)[torch.arange(len(z)), block["labels"][keep]]
        total = total + (hard - 0.5 * 4 * (p_T * log_q_T).sum(-1)).sum()
        tokens += int(keep.sum())
    assert tokens == 60
    (total / tokens).backward()
    for step, p in zip(steps, model.parameters(), strict=True):
        torch.testing.assert_close(step, RATE * p.grad, rtol=1e-3, atol=1e-6)


def test_gradients_are_averaged_before_they_are_clipped(blocks):
    data, four = blocks
    _, steps, _ = one_step(data, four, 1, clip=0.01)
    norm = torch.cat([s.flatten() for s in steps]).norm() / RATE
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_gradients_are_clipped_for_a_fused_optimizer_in_16_bits_too(blocks):
    data, four = blocks
    settings = {"hard_target": "labels", "precision": "bf16-mixed", "fused": True}
    _, plain, _ = one_step(data, four, 4, clip=None, **settings)
    _, clipped, _ = one_step(data, four, 4, clip=0.01, **settings)
    norm = torch.stack([step.norm() for step in plain]).norm()
    assert norm > 0.01 * RATE
    for a, b in zip(plain, clipped, strict=True):
        torch.testing.assert_close(a * 0.01 * RATE / norm, b, rtol=1e-2, atol=1e-7)


def test_the_logged_loss_is_per_token_and_the_sum_of_its_terms(blocks):
    data, four = blocks
    student, _, trainer = one_step(data, four, 2)
    logged = trainer.logged_metrics
    total = logged["train/hard"] + 0.5 * logged["train/soft"]
    assert float(logged["train/loss"]) == pytest.approx(float(total), rel=1e-5)
    assert 0 < float(logged["train/hard"]) < 2 * torch.tensor(300.0).log()
    assert int(student.tokens_seen) == 60


def train_alike(file):
    """Runs on each device: two steps on eight blocks, four per step."""
    world = process_group.world_size()
    tokenizer = train_tokenizer(["soft targets"] * 3, 300)
    size = len(tokenizer)
    torch.manual_seed(1)
    blocks = []
    counts = (16, 1, 7, 12, 3, 16, 2, 9)
    for row, counted in zip(torch.randint(0, size, (8, 17)), counts, strict=True):
        labels = row[1:].clone()
        labels[counted:] = -100
        blocks.append({"input_ids": row[:-1], "labels": labels, "position_ids": torch.arange(16)})
    teacher = sizes.decoder(sizes.Size(32, 2, 2, 64), tokenizer)
    student = sizes.decoder(sizes.Size(16, 1, 2, 64), tokenizer)
    module = StudentModule(
        *(student, [Frozen(teacher, size)]),
        *(Objective(forward_kl, 2.0, 0.5, 1.0, "labels"), Online(None)),
        lambda groups: torch.optim.SGD(groups, lr=RATE),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        size,
        shifted_labels=True,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(blocks[process_group.rank() :: world], batch_size=4 // world))
    if process_group.rank() == 0:
        torch.save(student.state_dict(), file)


@pytest.mark.slow
def test_two_devices_make_the_same_steps_as_one(tmp_path):
    """Under DDP, whose hooks must see the gradients of the chunked objective."""
    results = []
    for world in (1, 2):
        as_ranks(world, train_alike, tmp_path / "weights.pt")
        results.append(torch.load(tmp_path / "weights.pt", weights_only=True))
    for name, weights in results[0].items():
        torch.testing.assert_close(weights, results[1][name], rtol=1e-4, atol=1e-6)
