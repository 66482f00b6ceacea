"""A loss between the hidden states of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_distill.losses.intermediate import (
    IntermediateLoss,
    at_least_float32,
    layer_map,
    layers_of,
    sum_over_labels,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/W Σ (h_s − h_t)²: [B, T, W] to [B, T].

    Jiao et al. 2020, TinyBERT, eq. 8.
    """
    return (student - teacher).square().mean(-1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(h_s, h_t): [B, T, W] to [B, T].

    Sanh et al. 2019, DistilBERT.
    """
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


DISTANCES = {"mse": mse, "cosine": cosine}


class HiddenStates(IntermediateLoss):
    """Σ over tokens of the mean over mapped layers of distance(P h_s, h_t).

    h: the output of a layer, before the final norm. P: where the widths differ, a learned
    projection for each pair of layers (Romero et al. 2015, FitNets), which is trained with the
    student and not part of it; else the identity.
    layers: see `layer_map`. distance: `mse` or `cosine`.
    """

    key = "loss.hidden"

    def __init__(self, weight: float, layers: Any, distance: str) -> None:
        problems = []
        if distance not in list(DISTANCES):
            problems.append(f"{self.key}.distance={distance} must be one of {', '.join(DISTANCES)}")
        super().__init__(weight, problems)
        self.layers = layers
        self.distance = distance
        self.projections = nn.ModuleList()

    def attach(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Creates the projections, of unit scale, from torch's RNG, in the student's dtype."""
        student_layers = layers_of(student, "student", self.key)
        teacher_layers = layers_of(teacher, "teacher", self.key)
        self.pairs = layer_map(
            self.layers, len(student_layers), len(teacher_layers), f"{self.key}.layers"
        )
        for s, t in self.pairs:
            self.record("student", student_layers[s - 1], s)
            self.record("teacher", teacher_layers[t - 1], t)
        width_s, width_t = (m.config.get_text_config().hidden_size for m in (student, teacher))
        if width_s != width_t:
            like: Any = {"device": student.device, "dtype": student.dtype}
            for _ in self.pairs:
                projection = nn.Linear(width_s, width_t, bias=False, **like)
                nn.init.normal_(projection.weight, std=width_s**-0.5)
                self.projections.append(projection)

    def forward(
        self,
        labels: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        student, teacher = self.take()
        values = torch.stack(
            [
                DISTANCES[self.distance](
                    at_least_float32(self._project(n, student[s])), at_least_float32(teacher[t])
                )
                for n, (s, t) in enumerate(self.pairs)
            ]
        )
        return sum_over_labels(values.mean(0), labels, attention_mask)

    def _project(self, n: int, state: Tensor) -> Tensor:
        if not self.projections:
            return state
        weight: Any = self.projections[n].weight
        return F.linear(state.to(weight.dtype), weight)
