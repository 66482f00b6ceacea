"""What losses on intermediate layers share: which layers are compared, and how they are recorded.

Forward hooks instead of `output_hidden_states`: they also reach queries, keys and values, keep only
the mapped layers, and take the last layer before the final norm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lightning_distill.constants import IGNORED
from lightning_distill.errors import ConfigError
from lightning_distill.models.inspection import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class IntermediateLoss(nn.Module):
    """A loss on the intermediate layers of student and teacher.

    Call `attach` once. Then for each batch run both models inside `recording()` and call the loss:

        total = term(labels, position_ids, attention_mask)  # a sum over the unmasked labels

    labels: [B, T], or [B] where a text has one label. position_ids, attention_mask: [B, T], or None
    where the models do not read them. The caller multiplies by `weight` and divides by the number
    of labels. Neither model becomes a submodule; their hooks do nothing outside `recording()`.
    """

    key: ClassVar[str]  # the config key, for messages

    def __init__(self, weight: float, problems: list[str]) -> None:
        """problems: what is wrong with the subclass's settings. Raises ConfigError with all."""
        super().__init__()
        if not _number(weight) or weight < 0:
            problems = [f"{self.key}.weight={weight} must be a number from 0", *problems]
        raise_problems(problems)
        self.weight = float(weight)
        self._recording = False
        self._recorded: dict[str, dict[Any, Tensor]] = {"student": {}, "teacher": {}}
        self._edges: list[Any] = []

    def attach(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Has the layers that are compared recorded, and makes what the loss learns.

        Both may be on the meta device. Raises ConfigError where a model lacks such layers.
        """
        raise NotImplementedError

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The hooks record inside this context only.

        So neither evaluation nor the second forward pass of gradient checkpointing, which runs in
        `backward`, overwrites what was recorded.
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

        Only the direct gradient of each state, without the path through later layers.
        total: what the last call returned, undivided.
        """
        gradients = torch.autograd.grad(total, self._edges, retain_graph=True)
        return self.weight * torch.stack([at_least_float32(g).norm() for g in gradients]).norm()

    def record(self, role: str, module: nn.Module, name: Hashable) -> None:
        """Registers a hook that records the module's output as `name` of `role`."""

        # A closure instead of a method, so that a copy of the model does not copy this loss.
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._recording:
                self._recorded[role][name] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(hook)

    def take(self) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
        """The outputs recorded in student and teacher, by name. Clears the record."""
        # Views, which no later layer uses, so that gradient_norm has the direct gradient alone.
        student = {name: x.view_as(x) for name, x in self._recorded["student"].items()}
        assert student, "run the student inside recording()"
        device = next(iter(student.values())).device
        teacher = {name: x.detach().to(device) for name, x in self._recorded["teacher"].items()}
        assert teacher, "run the teacher inside recording()"
        self._clear()
        self._edges = [get_gradient_edge(x) for x in student.values() if x.requires_grad]
        if torch.is_grad_enabled() and not self._edges:
            raise ConfigError(
                f"{self.key}: the student's recorded states have no gradient. Use gradient "
                "checkpointing with use_reentrant=False."
            )
        return student, teacher

    def _clear(self) -> None:
        for states in self._recorded.values():
            states.clear()


def layer_map(
    layers: Any, student_layers: int, teacher_layers: int, key: str
) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), both counted from 1.

    layers: `uniform` pairs the student's layer i with the teacher's round(i · L_t / L_s), so the
    last with the last; `last` is that pair alone; or {student layer: teacher layer, ...}.
    Raises ConfigError, which names `key`, for anything else.
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
    setting = f"{key}={dict(layers)}"
    strays = [n for pair in layers.items() for n in pair if not re.fullmatch(r"-?\d+", str(n))]
    if strays:
        raise ConfigError(f"{setting}: layers are whole numbers, {strays[0]} is not.")
    pairs = [(int(s), int(t)) for s, t in layers.items()]
    for pair in pairs:
        for role, count, layer in zip(
            ("student", "teacher"), (student_layers, teacher_layers), pair, strict=True
        ):
            if not 1 <= layer <= count:
                raise ConfigError(
                    f"{setting}: the {role} has layers 1 to {count}, there is no {layer}."
                )
    return pairs


def layers_of(model: PreTrainedModel, role: str, key: str) -> nn.ModuleList:
    """The model's transformer layers. Raises ConfigError where it has no list of them."""
    if found := find_layers(model):
        return found[1]
    raise ConfigError(
        f"{key}: the {role}, a {type(model).__name__}, has no list of equal layers to record. "
        f"Set {key}.weight=0."
    )


def sum_over_labels(values: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Values [B, T] of tokens, summed over the unmasked labels [B, T].

    For labels [B] a text's value is the mean over its tokens.
    """
    if labels.ndim == 1:
        read = torch.ones_like(values) if attention_mask is None else attention_mask
        values = (values * read).sum(1) / read.sum(1)
    return values.masked_fill(labels == IGNORED, 0).sum()


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def raise_problems(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)
