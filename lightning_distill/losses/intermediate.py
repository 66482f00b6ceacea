"""What loss terms inside the network share: which layers are compared, and how they are recorded.

Forward hooks, and not `output_hidden_states`: they reach queries, keys and values too, keep only
the layers that are asked for, and take the last layer before the final norm.
"""

import math
import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from transformers import PreTrainedModel

from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError
from lightning_distill.models.inspection import find_layers


class IntermediateLoss(nn.Module):
    """A loss term on what happens inside the student and the teacher.

    `attach` once; then for each batch run both models inside `recording()` and call the term:

        total = term(labels, position_ids, attention_mask)  # a sum over the unmasked labels

    Labels are [B, T], or [B] where a whole text has one; the other two, [B, T], are None where the
    models do not read them. The caller multiplies by `weight` and divides by the number of labels.
    Neither model becomes a sub-module: only hooks are left in them, which do nothing outside
    `recording()`.
    """

    key: ClassVar[str]  # where the term stands in the config, for messages

    def __init__(self, weight: float, problems: list[str]) -> None:
        """problems: what a child found wrong with its own settings. All are told at once."""
        super().__init__()
        if not _number(weight) or weight < 0:
            problems = [f"{self.key}.weight={weight} must be a number from 0", *problems]
        refuse(problems)
        self.weight = float(weight)
        self._recording = False
        self._recorded: dict[str, dict[Any, Tensor]] = {"student": {}, "teacher": {}}
        self._edges: list[Any] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The hooks record in here only.

        So evaluation overwrites nothing, nor does the second forward pass of gradient
        checkpointing, which runs in `backward`.
        """
        self._clear()
        self._edges = []
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def gradient_norm(self, total: Tensor) -> Tensor:
        """‖weight · ∂total/∂(the student's recorded states)‖, before `total` is backpropagated.

        Each state's own share, without what reaches it through later layers: the network is not
        walked. `total` is what the last call returned, undivided.
        """
        gradients = torch.autograd.grad(total, self._edges, retain_graph=True)
        return self.weight * torch.stack([widen(g).norm() for g in gradients]).norm()

    def record(self, role: str, module: nn.Module, name: Hashable) -> None:
        # A closure, and not a method: copies of a model then do not copy the term.
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._recording:
                self._recorded[role][name] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(hook)

    def take(self) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
        """What was recorded in the student and in the teacher, by name; it is then forgotten."""
        # Views, so that gradient_norm has a place in the graph that no later layer shares.
        student = {name: x.view_as(x) for name, x in self._recorded["student"].items()}
        assert student, "run the student inside recording()"
        place = next(iter(student.values())).device
        teacher = {name: x.detach().to(place) for name, x in self._recorded["teacher"].items()}
        assert teacher, "run the teacher inside recording()"
        self._clear()
        self._edges = [get_gradient_edge(x) for x in student.values() if x.requires_grad]
        if torch.is_grad_enabled() and not self._edges:
            raise ConfigError(
                f"{self.key}: nothing recorded in the student can be differentiated. Gradient "
                "checkpointing must be the kind with use_reentrant=False."
            )
        return student, teacher

    def _clear(self) -> None:
        for states in self._recorded.values():
            states.clear()


def layer_map(
    layers: Any, student_layers: int, teacher_layers: int, key: str
) -> list[tuple[int, int]]:
    """Pairs of a student's and a teacher's layer, both counted from 1.

    layers: `uniform`, the student's layer i with the teacher's round(i · L_t / L_s), so the last
    with the last; `last`, that pair alone; or {student's layer: teacher's layer, ...}.
    """
    if layers == "last":
        return [(student_layers, teacher_layers)]
    if layers == "uniform":
        places = (i * teacher_layers / student_layers for i in range(1, student_layers + 1))
        return [(i, max(1, round(place))) for i, place in enumerate(places, 1)]
    if not isinstance(layers, Mapping) or not layers:
        raise ConfigError(
            f"{key}={layers} must be uniform, last, or pairs of a student's and a teacher's "
            "layer such as {1: 2, 2: 4}."
        )
    found = f"{key}={dict(layers)}"
    strays = [n for pair in layers.items() for n in pair if not re.fullmatch(r"-?\d+", str(n))]
    if strays:
        raise ConfigError(f"{found}: layers are whole numbers, {strays[0]} is not.")
    pairs = [(int(s), int(t)) for s, t in layers.items()]
    for pair in pairs:
        for role, count, layer in zip(
            ("student", "teacher"), (student_layers, teacher_layers), pair, strict=True
        ):
            if not 1 <= layer <= count:
                raise ConfigError(
                    f"{found}: the {role} has layers 1 to {count}, there is no {layer}."
                )
    return pairs


def layers_of(model: PreTrainedModel, role: str, key: str) -> nn.ModuleList:
    """Its layers. Raises ConfigError where there is no list of them."""
    if found := find_layers(model):
        return found[1]
    raise ConfigError(
        f"{key}: the {role}, a {type(model).__name__}, has no list of equal layers to look into. "
        f"Set {key}.weight=0."
    )


def summed(values: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Values [B, T] of tokens over the labels that count, [B, T] or [B]; there a text's value is
    the mean over its tokens."""
    if labels.ndim == 1:
        read = torch.ones_like(values) if attention_mask is None else attention_mask
        values = (values * read).sum(1) / read.sum(1)
    return values.masked_fill(labels == IGNORED, 0).sum()


def widen(x: Tensor) -> Tensor:
    """In at least 32 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)
