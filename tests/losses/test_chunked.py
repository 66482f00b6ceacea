"""Hidden states to gradients in chunks, against the same on all logits at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_divergences import LOSSES, make
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_distill.losses import chunked as module
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective, nll
from lightning_distill.models.output_head import find_head
from lightning_distill.models.predictions import Head, Predictions

B, T, D, V = 2, 9, 8, 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Five positions a chunk and two a block: several of each, none of them even."""
    monkeypatch.setitem(module.CHUNK, "cpu", 5 * V)
    monkeypatch.setitem(module.BLOCK, "cpu", 2 * V)


def make_side(width, rows=V, softcap=None, scale=1.0, bias=False, dtype=torch.float64):
    linear = nn.Linear(width, rows, bias=bias, dtype=dtype)
    states = torch.randn(B, T, width, dtype=dtype, requires_grad=True)
    return Predictions(states, Head(linear, scale, softcap), V)


@pytest.fixture
def labels():
    labels = torch.randint(0, V, (B, T))
    labels[0, 3:5] = -100
    labels[1, 0] = -100
    return labels


def outcome(objective, student, teachers, labels, fused, **more):
    """Terms, and the gradients of states, matrix and bias."""
    objective.fused = fused
    inputs = [student.states, *(p for p in student.head.linear.parameters())]
    terms = objective.terms(student, teachers, labels, **more)
    return terms, torch.autograd.grad(3 * terms.total, inputs)


def assert_same(a, b, tolerance=1e-12):
    for name in a[0].parts:
        torch.testing.assert_close(a[0].parts[name], b[0].parts[name], rtol=tolerance, atol=1e-12)
    assert a[0].details.keys() == b[0].details.keys()
    for name in a[0].details:
        found, expected = a[0].details[name], b[0].details[name]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-12)
    torch.testing.assert_close(a[0].total, b[0].total, rtol=tolerance, atol=1e-12)
    for x, y in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_the_same_in_chunks_as_at_once(name, labels):
    objective = make(name, "loss.temperature=2", "loss.alpha=0.6", "loss.hard_weight=0.4")
    sides = make_side(D), [make_side(12)]
    both = [outcome(objective, *sides, labels, fused, details=True) for fused in (True, False)]
    assert_same(*both)


@pytest.mark.parametrize(
    "kind",
    [
        {"softcap": 3.0},  # Gemma
        {"scale": 0.25},  # Granite, Cohere
        {"bias": True},
        {"rows": V + 5},  # a padded embedding
        {"softcap": 2.0, "scale": 0.5, "bias": True, "rows": V + 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("hard_target", ["labels", "teacher"])
def test_every_kind_of_head_gives_the_same_in_chunks_as_at_once(kind, hard_target, labels):
    objective = Objective(forward_kl, 2.0, 0.6, 0.4, hard_target)
    sides = make_side(D, **kind), [make_side(12, **kind)]
    both = [outcome(objective, *sides, labels, fused, details=True) for fused in (True, False)]
    assert_same(*both)


def test_several_teachers_and_unknown_positions_give_the_same_in_chunks_as_at_once(labels):
    objective = Objective(forward_kl, 2.0, 0.6, 0.4, "labels")
    objective.teacher_weights = (1.0, 3.0)
    sides = make_side(D), [make_side(12), make_side(6)]
    known = torch.rand(B, T) > 0.4
    both = [
        outcome(objective, *sides, labels, fused, teacher_mask=known) for fused in (True, False)
    ]
    assert_same(*both)


@given(st.integers(1, 400), st.integers(1, 200), st.integers(0, 1000))
@examples(max_examples=25, deadline=None)
def test_the_size_of_chunks_and_blocks_does_not_matter(chunk, block, seed):
    torch.manual_seed(seed)
    labels = torch.randint(-1, V, (B, T))
    labels[labels == -1] = -100
    objective = Objective(forward_kl, 1.0, 1.0, 1.0, "labels")
    sides = make_side(D), [make_side(12)]
    before = dict(module.CHUNK), dict(module.BLOCK)
    module.CHUNK["cpu"], module.BLOCK["cpu"] = chunk, block
    try:
        both = [outcome(objective, *sides, labels, fused) for fused in (True, False)]
    finally:
        module.CHUNK.update(before[0])
        module.BLOCK.update(before[1])
    assert_same(*both)


def test_a_batch_without_a_single_label_has_no_loss_and_no_gradient():
    objective = Objective(forward_kl, 1.0, 1.0, 1.0, "labels")
    labels = torch.full((B, T), -100)
    terms, gradients = outcome(objective, make_side(D), [make_side(12)], labels, True, details=True)
    assert terms.total == 0
    assert terms.tokens == 0
    assert not any(g.any() for g in gradients)


def test_in_32_bits_it_is_within_their_rounding_of_the_float64_reference(labels):
    torch.manual_seed(3)
    objective = Objective(forward_kl, 2.0, 0.6, 0.4, "labels")
    student, teacher = make_side(D), make_side(12)
    exact = outcome(objective, student, [teacher], labels, False)
    for side in (student, teacher):
        side.head.linear.float()
    student = Predictions(student.states.detach().float().requires_grad_(), student.head, V)
    teacher = Predictions(teacher.states.float(), teacher.head, V)
    rough = outcome(objective, student, [teacher], labels, True)
    torch.testing.assert_close(rough[0].total.double(), exact[0].total, rtol=1e-6, atol=0)
    for x, y in zip(rough[1], exact[1], strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


def test_under_autocast_products_are_of_16_bits_and_sums_of_32(labels):
    objective = Objective(forward_kl, 2.0, 0.6, 0.4, "labels")
    student, teacher = make_side(D, dtype=torch.float32), make_side(12, dtype=torch.float32)
    exact = outcome(objective, student, [teacher], labels, False)
    with torch.autocast("cpu", torch.bfloat16):
        fused = outcome(objective, student, [teacher], labels, True)
        whole = outcome(objective, student, [teacher], labels, False)
    assert fused[0].total.dtype == torch.float32
    assert {g.dtype for g in fused[1]} == {torch.float32}
    torch.testing.assert_close(fused[0].total, whole[0].total, rtol=1e-4, atol=0)
    error = [float((a - b).norm() / b.norm()) for a, b in zip(fused[1], exact[1], strict=True)]
    assert max(error) < 2e-2


def test_no_tensor_of_all_logits_is_ever_made(labels):
    sides = make_side(D), [make_side(12)]
    matrices = {side.head.linear.weight.data_ptr() for side in (sides[0], *sides[1])}
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for x in found if isinstance(found, tuple | list) else [found]:
                logits = isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] == V
                if logits and x.data_ptr() not in matrices:
                    sizes.append(x.numel() // V)
            return found

    settings = forward_kl, 2.0, 0.6, 0.4, "labels"
    with Watch():
        Objective(*settings).terms(*sides, labels).total.backward()
    assert max(sizes) == 5  # a chunk's positions, of 15
    with Watch():
        Objective(*settings, fused=False).terms(*sides, labels).total.backward()
    assert max(sizes) == 15


def make_model(seed, tied, width=16):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).double()


def predictions(model, ids, head):
    out = (model.base_model if head else model)(input_ids=ids, use_cache=False)
    return Predictions(out.last_hidden_state if head else out.logits, head, V)


@pytest.mark.parametrize(
    ("tied", "checkpointing", "compiled"),
    [(True, False, False), (False, True, False), (True, False, True)],
)
def test_a_models_gradients_are_the_same_as_through_its_own_logits(
    labels, tied, checkpointing, compiled
):
    student, teacher = make_model(1, tied), make_model(2, tied, width=32)
    ids = torch.randint(0, V, (B, T))
    objective = Objective(forward_kl, 2.0, 0.6, 0.4, "labels")
    gradients = []
    for split in (True, False):
        student.zero_grad()
        if checkpointing and split:
            student.activation_checkpointing_enable()
            student.train()

        heads = [find_head(model) if split else None for model in (student, teacher)]

        def step(heads=heads):
            with torch.no_grad():
                references = [predictions(teacher, ids, heads[1])]
            return objective.terms(predictions(student, ids, heads[0]), references, labels).total

        if compiled and split:
            step = torch.compile(step, backend="aot_eager")
        step().backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
    for fused, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, whole, rtol=1e-9, atol=1e-11)


def test_gradients_of_two_micro_batches_add_up(labels):
    student, teacher = make_side(D), make_side(12)
    objective = Objective(forward_kl, 1.0, 1.0, 1.0, "labels")
    weight = student.head.linear.weight
    for row in range(B):
        part = [
            Predictions(side.states[row : row + 1], side.head, V) for side in (student, teacher)
        ]
        objective.terms(part[0], part[1:], labels[row : row + 1]).total.backward()
    parts, weight.grad = weight.grad, None
    objective.terms(student, [teacher], labels).total.backward()
    torch.testing.assert_close(parts, weight.grad, rtol=1e-12, atol=1e-12)


def test_a_frozen_matrix_or_body_gets_no_gradient(labels):
    objective = Objective(forward_kl, 1.0, 1.0, 1.0, "labels")
    student, teacher = make_side(D), make_side(12)
    student.head.linear.requires_grad_(False)
    objective.terms(student, [teacher], labels).total.backward()
    assert student.states.grad.any()
    assert student.head.linear.weight.grad is None
    fixed = Predictions(student.states.detach(), student.head, V)
    student.head.linear.requires_grad_(True)
    objective.terms(fixed, [teacher], labels).total.backward()
    assert student.head.linear.weight.grad.any()


def test_without_gradients_it_measures_the_text(labels):
    side = make_side(D)
    with torch.no_grad():
        total, tokens = nll(side, labels)
    expected = nn.functional.cross_entropy(
        side.logits().flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(total, expected.detach())
    assert tokens == 15
    assert not total.requires_grad
