"""A loss between the self-attention relations of student and teacher.

A relation is [T, T] for any width, so models of two sizes are compared without a projection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_distill.errors import ConfigError
from lightning_distill.losses.intermediate import (
    IntermediateLoss,
    at_least_float32,
    layer_map,
    layers_of,
    raise_problems,
    sum_over_labels,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BERT = {"q": "query", "k": "key", "v": "value"}


class Relations(IntermediateLoss):
    """Σ over tokens of the mean over layers, pairs and heads of KL(R_t ‖ R_s).

    R = softmax(A Bᵀ / √d) over the positions that a token may attend to: in a decoder those of its
    document up to itself, in an encoder all but the padding. A and B are queries, keys or values
    (before rotary embeddings), with all heads of a layer concatenated and split again into relation
    heads of d channels.
    Wang et al. 2020, MiniLMv2, eq. 5 and 6 (qq, kk, vv); MiniLM (qk, vv).

    layers: see `layer_map`. heads: number of relation heads; None for the student's number of
    attention heads. pairs: names such as qq or qk. For each layer and pair the backward pass keeps
    two [B, heads, T, T] in 32 bits.
    """

    key = "loss.relations"

    def __init__(self, weight: float, layers: Any, heads: int | None, pairs: Sequence[str]) -> None:
        problems = []
        if heads is not None and (type(heads) is not int or heads < 1):
            problems.append(f"{self.key}.heads={heads} must be a whole number from 1, or null")
        is_list = isinstance(pairs, Sequence) and not isinstance(pairs, str) and len(pairs) > 0
        if not is_list or not all(re.fullmatch("[qkv]{2}", str(pair)) for pair in pairs):
            problems.append(
                f"{self.key}.pairs={pairs} must be a list of two letters each of q, k and v, "
                "such as [qq, kk, vv]"
            )
        super().__init__(weight, problems)
        self.layers = layers
        self.heads = heads
        self.pairs = [(pair[0], pair[1]) for pair in pairs]

    def attach(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        models = {"student": student, "teacher": teacher}
        layers = {role: layers_of(model, role, self.key) for role, model in models.items()}
        self.causal = student.can_generate()
        counts = len(layers["student"]), len(layers["teacher"])
        self.mapped = layer_map(self.layers, *counts, f"{self.key}.layers")
        self.relation_heads = self.heads or student.config.get_text_config().num_attention_heads
        letters = sorted({letter for pair in self.pairs for letter in pair})
        modules: dict[tuple[str, int, str], Any] = {}
        for pair in self.mapped:
            for (role, model), layer in zip(models.items(), pair, strict=True):
                parts = _projections(layers[role][layer - 1], letters)
                if missing := [f"{letter}_proj" for letter in letters if letter not in parts]:
                    raise ConfigError(
                        f"{self.key}: layer {layer} of the {role}, a {type(model).__name__}, has "
                        f"no {', '.join(missing)}. Relations need attention with separate q_proj, "
                        f"k_proj and v_proj, or query, key and value; loss.hidden works with any "
                        f"(set {self.key}.weight=0)."
                    )
                modules |= {(role, layer, letter): part for letter, part in parts.items()}
        raise_problems(
            self._mismatches({name: part.out_features for name, part in modules.items()})
        )
        for (role, layer, letter), part in modules.items():
            self.record(role, part, (layer, letter))

    def _mismatches(self, widths: dict[tuple[str, int, str], int]) -> list[str]:
        problems = []
        for (role, layer, a), width in widths.items():
            if width % self.relation_heads:
                problems.append(
                    f"{self.key}.heads={self.relation_heads} does not divide the {width} channels "
                    f"of the {role}'s {a}_proj"
                )
            for b in (right for left, right in self.pairs if left == a):
                other = widths[role, layer, b]
                if other != width:
                    problems.append(
                        f"{self.key}.pairs has {a}{b}, but the {role}'s {a}_proj has {width} "
                        f"channels and its {b}_proj {other}; leave {a}{b} out"
                    )
        return list(dict.fromkeys(problems))  # several layers can have the same

    def forward(
        self,
        labels: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        student, teacher = self.take()
        masked: Tensor | None = None
        if self.causal:
            length = next(iter(student.values())).shape[1]
            arange = torch.arange(length, device=labels.device)[None]
            masked = ~_visible(arange if position_ids is None else position_ids)
        elif attention_mask is not None:
            masked = attention_mask[:, None, None] == 0
        total = torch.zeros((), device=labels.device)
        for s, t in self.mapped:
            for a, b in self.pairs:
                q = self._relation(student[s, a], student[s, b], masked)
                p = self._relation(teacher[t, a], teacher[t, b], masked)
                kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean(1)
                total = total + sum_over_labels(kl, labels, attention_mask)
        return total / (len(self.mapped) * len(self.pairs))

    def _relation(self, a: Tensor, b: Tensor, masked: Tensor | None) -> Tensor:
        """log R: [B, T, W] and [B, T, W] to [B, heads, T, T]."""
        a, b = (
            at_least_float32(x).unflatten(-1, (self.relation_heads, -1)).transpose(1, 2)
            for x in (a, b)
        )
        # The product of a vector with itself is large; 16 bits would reorder the relations.
        with torch.autocast(a.device.type, enabled=False):
            scores = a @ b.mT / a.shape[-1] ** 0.5
        if masked is not None:  # not −∞, whose KL divergence is NaN
            scores = scores.masked_fill(masked, torch.finfo(scores.dtype).min)
        return scores.log_softmax(-1)


def _visible(position_ids: Tensor) -> Tensor:
    """Which positions a token may attend to: [B, T] to [B, 1, T, T].

    As in transformers, a document ends where position_ids do not increase by one.
    """
    steps = position_ids.diff(prepend=position_ids[:, :1])
    documents = (steps != 1).cumsum(-1)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


def _projections(layer: nn.Module, letters: Sequence[str]) -> dict[str, nn.Module]:
    """A layer's projections for queries, keys and values, by letter; only those that exist."""
    # A decoder layer's first attention is self-attention, its second is cross-attention.
    modules = {name.split(".")[-1]: module for name, module in reversed([*layer.named_modules()])}
    candidates = {
        x: (f"{x}_proj", f"{x}_lin", BERT[x]) for x in letters
    }  # DistilBERT's, then BERT's
    return {x: modules[n] for x, names in candidates.items() for n in names if n in modules}
