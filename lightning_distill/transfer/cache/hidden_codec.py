"""What a cache keeps with `transfer.stored=hidden`: last hidden states, and the output matrix.

The student's step multiplies them again, chunk by chunk, so that the whole distribution is there at
every temperature, for every loss.
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

from lightning_distill.models.output_head import Head, Predictions
from lightning_distill.storage.artifacts import write_atomic


@dataclass(frozen=True)
class HiddenStateCodec:
    """States of each teacher: as they are in 32 bits, or as whole numbers of 16 or 8 bits, each
    position at a scale of its own."""

    heads: Sequence[Head]
    bits: int
    vocab_size: int

    @property
    def bytes_per_token(self) -> int:
        scale = 4 if self.bits < 32 else 0
        return sum(head.linear.in_features * self.bits // 8 + scale for head in self.heads)

    def encode(self, said: Sequence[Predictions], uniform: Tensor) -> dict[str, Tensor]:
        """Of each teacher [N, D]; nothing is drawn. Fields [N, ...]."""
        most = 2 ** (self.bits - 1) - 1
        fields = {}
        for i, one in enumerate(said):
            states = one.states.float()
            if self.bits == 32:
                fields[f"states_{i}"] = states
                continue
            scale = states.abs().amax(-1).clamp(min=1e-30) / most
            codes = (states / scale[:, None]).round()
            fields[f"states_{i}"] = codes.to(torch.int8 if self.bits == 8 else torch.int16)
            fields[f"scale_{i}"] = scale
        return fields

    def broken(self, fields: dict[str, Tensor]) -> Tensor:
        """At which positions what was encoded is no number, or has no end."""
        whole = self.bits == 32
        most = [
            fields[f"states_{i}"].abs().amax(-1) if whole else fields[f"scale_{i}"]
            for i in range(len(self.heads))
        ]
        return ~torch.stack(most).isfinite().all(0)

    def decode(self, fields: dict[str, Tensor]) -> list[Predictions]:
        """What `encode` has made, of any leading shape."""
        found = []
        for i, head in enumerate(self.heads):
            states = fields[f"states_{i}"]
            if self.bits < 32:
                states = states * fields[f"scale_{i}"][..., None]
            head.linear.to(states.device)
            found.append(Predictions(states.to(head.linear.weight.dtype), head, self.vocab_size))
        return found

    def kl(self, said: Sequence[Predictions], fields: dict[str, Tensor]) -> Tensor:
        """KL(stored ‖ true) of each position, [N], the mean over the teachers."""
        found = []
        for true, stored in zip(said, self.decode(fields), strict=True):
            p, q = (F.log_softmax(one.logits(), dim=-1) for one in (stored, true))
            found.append((p.exp() * (p - q)).sum(-1))
        return torch.stack(found).mean(0)


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
