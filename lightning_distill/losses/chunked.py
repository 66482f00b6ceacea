"""A loss over positions, from hidden states to gradients, without holding their logits.

Logits of [tokens, vocabulary], the student's, the teacher's, their softmaxes and the gradient, are
what fills the memory of a distillation step. Here a chunk of positions goes from hidden states to
logits, to the loss, and back to the gradients of hidden states and output matrix, all within the
forward pass; then its buffers serve the next chunk. Which loss it is, is not known here.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_distill.models.output_head import Predictions

# Logits in a chunk: enough positions for the matrix products to reach their full rate.
CHUNK = {"cpu": 2**24, "gpu": 2**27}
# Logits worked on at a time: on a processor, as many as stay in a core's cache.
BLOCK = {"cpu": 2**19, "gpu": 2**27}

# (student's logits [N, V], each teacher's [N, V'], which positions these are) to a sum over them,
# which is differentiated, and further sums by name.
Score = Callable[[Tensor, list[Tensor], slice], tuple[Tensor, dict[str, Tensor]]]


@torch.compiler.disable
def chunked(
    student: Predictions, teachers: Sequence[Predictions], score: Score
) -> tuple[Tensor, dict[str, Tensor]]:
    """`score`, summed over N positions that are given as hidden states [N, D] and heads.

    Equal to `score(student.logits(), [t.logits() for t in teachers], slice(0, N))` with its
    gradients, but for the order of summation. Gradients are made at once, so that the result can
    be differentiated a single time.
    """
    states, (weight, bias) = student.states, student.output()
    device = states.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else states.dtype
    rows = max(1, CHUNK[_kind(states)] // student.vocab_size)
    walk = _Walk(_Logits(student, dtype, rows), [_Logits(t, dtype, rows) for t in teachers], score)
    inputs: list[Tensor | None] = [states, weight, bias]
    if not torch.is_grad_enabled():
        inputs = [x if x is None else x.detach() for x in inputs]
    return _Fused.apply(*inputs, walk), walk.sums


class _Fused(torch.autograd.Function):
    """Hands the gradients that the walk has made to autograd when it asks for them."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, walk: "_Walk"
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        like = [
            x if wants else None for x, wants in zip((states, weight, bias), wanted, strict=True)
        ]
        with torch.autocast(states.device.type, enabled=False):
            total, ctx.gradients = walk(*like)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(g if g is None else g.mul_(gradient) for g in ctx.gradients), None)


class _Walk:
    def __init__(self, student: "_Logits", teachers: Sequence["_Logits"], score: Score) -> None:
        self.student, self.teachers, self.score = student, teachers, score
        self.sums: dict[str, Tensor] = {}

    def __call__(
        self, states: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The total, and its gradients with respect to what is given."""
        student = self.student
        learns = any(x is not None for x in (states, weight, bias))
        of_states = None if states is None else torch.empty_like(states)
        # Sums over all chunks, which 16 bits would round each time.
        of_weight = None if weight is None else student.buffer.new_zeros(weight.shape)
        of_bias = None if bias is None else student.buffer.new_zeros(bias.shape)
        total = student.buffer.new_zeros(())
        for chunk in _pieces(len(student.states), len(student.buffer)):
            products = student.products(chunk)
            total += self._score(chunk, products, learns)
            products = products.to(student.states.dtype)  # now the gradient
            if of_states is not None:
                of_states[chunk] = products @ student.weight
            if of_weight is not None:
                student.add_outer(of_weight, products, chunk)
            if of_bias is not None:
                of_bias += products.sum(0)
        gradients = ((of_states, states), (of_weight, weight), (of_bias, bias))
        return total, [None if x is None or g is None else g.to(x.dtype) for g, x in gradients]

    def _score(self, chunk: slice, products: Tensor, learns: bool) -> Tensor:
        """The sum over a chunk; its gradient takes the place of the products."""
        references = [teacher.products(chunk) for teacher in self.teachers]
        total = products.new_zeros(())
        for block in _pieces(len(products), rows_at_a_time(products)):
            leaf = products[block].detach().requires_grad_(learns)
            others = [t.finish(r[block]) for t, r in zip(self.teachers, references, strict=True)]
            positions = slice(chunk.start + block.start, chunk.start + block.stop)
            with torch.set_grad_enabled(learns):
                value, sums = self.score(self.student.finish(leaf), others, positions)
            if learns:
                (gradient,) = torch.autograd.grad(value, leaf)
                leaf.detach().copy_(gradient)
            total += value.detach()
            for name, summed in sums.items():
                self.sums[name] = self.sums.get(name, 0) + summed
        return total


class _Logits:
    """One model's part: what its products are made of, and the buffer they take turns in."""

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


def rows_at_a_time(logits: Tensor) -> int:
    """How many positions of [N, V] to work on before the next ones."""
    kind = _kind(logits)
    share = BLOCK[kind] * (torch.get_num_threads() if kind == "cpu" else 1)
    return max(1, share // logits.shape[1])


def _kind(x: Tensor) -> str:
    return "cpu" if x.device.type == "cpu" else "gpu"


def _pieces(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
