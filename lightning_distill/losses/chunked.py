"""A sum over positions and its gradients, from hidden states, without holding all logits.

Logits [tokens, vocabulary] of student and teacher, their softmaxes and the gradient fill the memory
of a distillation step. Here a chunk of positions goes from hidden states to logits, to the loss,
and back to the gradients of the hidden states and of the output matrix, all within the forward
pass; then the next chunk reuses its buffers. The caller gives the loss, a function of logits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_distill.models.predictions import Predictions

# Logits per chunk: enough positions for the matrix products to reach their full rate.
CHUNK = {"cpu": 2**24, "gpu": 2**27}
# Logits per block, the part of a chunk that the loss sees: on a CPU, what fits a core's cache.
BLOCK = {"cpu": 2**19, "gpu": 2**27}

# (student's logits [N, V], logits [N, V'] of each teacher, the positions that these are) to the
# sum over the positions, which is differentiated, and further sums by name.
ChunkTerms = Callable[[Tensor, list[Tensor], slice], tuple[Tensor, dict[str, Tensor]]]


@torch.compiler.disable
def sum_in_chunks(
    student: Predictions, teachers: Sequence[Predictions], chunk_terms: ChunkTerms
) -> tuple[Tensor, dict[str, Tensor]]:
    """`chunk_terms`, summed over N positions that are given as hidden states [N, D] and heads.

    Equals `chunk_terms(student.logits(), [t.logits() for t in teachers], slice(0, N))` and its
    gradients up to the order of summation. The gradients are computed here, so the result can be
    differentiated once.
    """
    inputs = [student.states, *student.output()]
    learns = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    device = student.states.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else student.states.dtype
    rows = max(1, CHUNK[_kind(student.states)] // student.vocab_size)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        total, sums, gradients = _walk(
            _Logits(student, dtype, rows),
            [_Logits(teacher, dtype, rows) for teacher in teachers],
            chunk_terms,
            learns,
        )
        gradients = [
            g if g is None or x is None else g.to(x.dtype)
            for g, x in zip(gradients, inputs, strict=True)
        ]
    return _WithGradients.apply(total, gradients, *inputs), sums


class _WithGradients(torch.autograd.Function):
    """`total`, with gradients with respect to `inputs` that are known already."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None
    ) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(g if g is None else g.mul_(gradient) for g in ctx.gradients)


class _Logits:
    """W h + b of one model, in a buffer that all chunks share."""

    def __init__(self, predictions: Predictions, dtype: torch.dtype, rows: int) -> None:
        """dtype: of the factors; the products are kept in at least 32 bits."""
        weight, bias = predictions.output()
        assert predictions.head is not None
        self.finish = predictions.head.finish
        self.states = predictions.states.detach().to(dtype)
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach()
        exact = torch.promote_types(dtype, torch.float32)
        rows = min(rows, max(1, len(self.states)))
        self.buffer = self.states.new_empty(rows, len(self.weight), dtype=exact)

    def products(self, chunk: slice) -> Tensor:
        states = self.states[chunk]
        out = self.buffer[: len(states)]
        if out.dtype == states.dtype:
            torch.mm(states, self.weight.T, out=out)
        else:
            out.copy_(states @ self.weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def add_outer(self, total: Tensor, gradient: Tensor, chunk: slice) -> None:
        """total += gradientᵀ · states"""
        if total.dtype == gradient.dtype:
            total.addmm_(gradient.T, self.states[chunk])
        else:
            total += gradient.T @ self.states[chunk]


def _walk(
    student: _Logits, teachers: list[_Logits], chunk_terms: ChunkTerms, learns: list[bool]
) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
    """The total, the sums, and the total's gradients with respect to states, W and b.

    learns: which of the three are wanted; None for the others.
    """
    buffer = student.buffer
    of_states = torch.empty_like(student.states) if learns[0] else None
    # Sums over all chunks, which 16 bits would round each time.
    of_weight = buffer.new_zeros(student.weight.shape) if learns[1] else None
    of_bias = buffer.new_zeros(len(student.weight)) if learns[2] else None
    total, sums = buffer.new_zeros(()), dict[str, Tensor]()
    for chunk in _pieces(len(student.states), len(buffer)):
        products = student.products(chunk)
        total += _differentiate(student, teachers, chunk_terms, chunk, products, any(learns), sums)
        gradient = products.to(student.states.dtype)
        if of_states is not None:
            of_states[chunk] = gradient @ student.weight
        if of_weight is not None:
            student.add_outer(of_weight, gradient, chunk)
        if of_bias is not None:
            of_bias += gradient.sum(0)
    return total, sums, [of_states, of_weight, of_bias]


def _differentiate(
    student: _Logits,
    teachers: list[_Logits],
    chunk_terms: ChunkTerms,
    chunk: slice,
    products: Tensor,
    learns: bool,
    sums: dict[str, Tensor],
) -> Tensor:
    """The total of a chunk, block by block. Adds to `sums`, and overwrites the student's products
    with the total's gradient with respect to them."""
    references = [teacher.products(chunk) for teacher in teachers]
    total = products.new_zeros(())
    for block in _pieces(len(products), block_rows(products)):
        leaf = products[block].detach().requires_grad_(learns)
        logits = [t.finish(r[block]) for t, r in zip(teachers, references, strict=True)]
        positions = slice(chunk.start + block.start, chunk.start + block.stop)
        with torch.set_grad_enabled(learns):
            value, more = chunk_terms(student.finish(leaf), logits, positions)
        if learns:
            (gradient,) = torch.autograd.grad(value, leaf)
            leaf.detach().copy_(gradient)
        total += value.detach()
        for name, summed in more.items():
            sums[name] = sums.get(name, 0) + summed
    return total


def block_rows(logits: Tensor) -> int:
    """How many positions of [N, V] to process at a time."""
    kind = _kind(logits)
    share = BLOCK[kind] * (torch.get_num_threads() if kind == "cpu" else 1)
    return max(1, share // logits.shape[1])


def _kind(x: Tensor) -> str:
    return "cpu" if x.device.type == "cpu" else "gpu"


def _pieces(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
