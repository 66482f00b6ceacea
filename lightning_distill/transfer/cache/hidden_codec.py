"""`transfer.stored=hidden`: a cache of last hidden states, and of the output matrix.

The student's training step computes the logits from them, chunk by chunk, so that the whole
distribution is available at every temperature and for every loss.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError
from lightning_distill.models.output_head import find_head
from lightning_distill.models.predictions import Head, Predictions
from lightning_distill.storage.artifacts import write_atomic


@dataclass(frozen=True)
class HiddenStateCodec:
    """The hidden states of each teacher, in 32 bits as they are, or quantized.

    With 16 or 8 bits: symmetric absmax quantization to integers, one scale a position.
    """

    heads: Sequence[Head]
    bits: int
    vocab_size: int

    @property
    def bytes_per_token(self) -> int:
        scale = 4 if self.bits < 32 else 0
        return sum(head.linear.in_features * self.bits // 8 + scale for head in self.heads)

    def encode(self, predictions: Sequence[Predictions], uniform: Tensor) -> dict[str, Tensor]:
        """Of each teacher [N, D] to fields [N, ...]. uniform is not used: nothing is sampled."""
        largest = 2 ** (self.bits - 1) - 1
        fields = {}
        for i, prediction in enumerate(predictions):
            states = prediction.states.float()
            if self.bits == 32:
                fields[f"states_{i}"] = states
                continue
            scale = states.abs().amax(-1).clamp(min=1e-30) / largest
            codes = (states / scale[:, None]).round()
            fields[f"states_{i}"] = codes.to(torch.int8 if self.bits == 8 else torch.int16)
            fields[f"scale_{i}"] = scale
        return fields

    def nonfinite(self, fields: dict[str, Tensor]) -> Tensor:
        """True at the positions where an encoded state was NaN or Inf."""
        unquantized = self.bits == 32
        largest = [
            fields[f"states_{i}"].abs().amax(-1) if unquantized else fields[f"scale_{i}"]
            for i in range(len(self.heads))
        ]
        return ~torch.stack(largest).isfinite().all(0)

    def decode(self, fields: dict[str, Tensor]) -> list[Predictions]:
        """Fields of any leading shape to the predictions of each teacher."""
        predictions = []
        for i, head in enumerate(self.heads):
            states = fields[f"states_{i}"]
            if self.bits < 32:
                states = states * fields[f"scale_{i}"][..., None]
            head.linear.to(states.device)
            states = states.to(head.linear.weight.dtype)
            predictions.append(Predictions(states, head, self.vocab_size))
        return predictions

    def kl(self, predictions: Sequence[Predictions], fields: dict[str, Tensor]) -> Tensor:
        """KL(stored ‖ true) at each position, [N], averaged over the teachers."""
        divergences = []
        for true, stored in zip(predictions, self.decode(fields), strict=True):
            p, q = (F.log_softmax(one.logits(), dim=-1) for one in (stored, true))
            divergences.append((p.exp() * (p - q)).sum(-1))
        return torch.stack(divergences).mean(0)


def heads_of(models: Sequence[PreTrainedModel]) -> list[Head]:
    """The models' output heads. Raises ConfigError where one has none or NaN or Inf in it."""
    heads = []
    for model in models:
        head = find_head(model)
        if head is None:
            raise ConfigError(
                "transfer.stored=hidden needs a teacher whose logits are hidden states times an "
                f"output matrix; those of {model.name_or_path} are not. Choose "
                "transfer.stored=hybrid."
            )
        if not all(x.isfinite().all() for x in head.linear.parameters()):
            raise ConfigError(
                f"The teacher {model.name_or_path} has NaN or Inf in its output matrix; nothing of "
                "it is stored. Check its weights."
            )
        heads.append(head)
    return heads


def save_heads(folder: Path, heads: Sequence[Head]) -> None:
    tensors, settings = {}, []
    for i, head in enumerate(heads):
        for name, x in head.linear.state_dict().items():
            tensors[f"{i}.{name}"] = x.cpu().contiguous()
        settings.append({"scale": head.scale, "softcap": head.softcap})
    write_atomic(folder / "head.safetensors", save(tensors))
    write_atomic(folder / "head.json", json.dumps(settings).encode())


def load_heads(folder: Path) -> list[Head]:
    tensors: dict[str, Tensor] = load_file(folder / "head.safetensors")
    heads = []
    for i, settings in enumerate(json.loads((folder / "head.json").read_text())):
        heads.append(_head(tensors, f"{i}.", settings))
    return heads


def _head(tensors: dict[str, Tensor], prefix: str, settings: dict[str, Any]) -> Head:
    weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    linear.requires_grad_(False)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return Head(linear, **settings)
