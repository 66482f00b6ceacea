"""Weight-only quantization of a frozen teacher's linear layers, by torchao.

Embeddings and the output head are not quantized: the chunked loss multiplies by slices of the head,
each of which would have to be unpacked. Nor are the experts of a mixture, which are no linear
layers in transformers.

Each of torchao's packed 4-bit formats is for one kind of device, and cannot move with a model
between CPU and GPU; its portable one takes a byte per weight. `PackedInt4` is portable and takes
half of that.
"""

import logging
from math import gcd
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import (
    Int8WeightOnlyConfig,
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_,
    quantize_affine,
)
from torchao.utils import TorchAOBaseTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_distill.errors import ConfigError
from lightning_distill.models.inspection import weight_bytes

log = logging.getLogger(__name__)

GROUP_SIZE = 64  # int4 weights of a row that share a scale and a zero point


class PackedInt4(TorchAOBaseTensor):
    """A matrix [R, C] of 4-bit weights, two per byte, which is unpacked for each product.

    packed: [R, C / 2]. scale, zero_point: [R, C / group], one for each `group` weights of a row.
    dtype: of the weight before quantization.
    """

    # Lists, because torchao adds to them.
    tensor_data_names: ClassVar[list[str]] = ["packed", "scale", "zero_point"]
    tensor_attribute_names: ClassVar[list[str]] = ["group", "dtype"]

    def __new__(
        cls, packed: Tensor, scale: Tensor, zero_point: Tensor, group: int, dtype: torch.dtype
    ) -> "PackedInt4":
        shape = (packed.shape[0], 2 * packed.shape[1])
        wrapper: PackedInt4 = torch.Tensor._make_wrapper_subclass(
            cls, shape, device=packed.device, dtype=dtype, requires_grad=False
        )
        return wrapper

    def __init__(
        self, packed: Tensor, scale: Tensor, zero_point: Tensor, group: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.packed, self.scale, self.zero_point, self.group = packed, scale, zero_point, group

    @classmethod
    def from_weight(cls, weight: Tensor, group: int) -> "PackedInt4":
        """Asymmetric rounding to 16 levels per group, between its minimum and maximum."""
        block, bounds = (1, group), (0, 15)
        scale, zero_point = choose_qparams_affine(
            *(weight, MappingType.ASYMMETRIC, block, torch.uint8, *bounds),
            scale_dtype=weight.dtype,
            zero_point_dtype=torch.uint8,
        )
        q = quantize_affine(weight, block, scale, zero_point, torch.uint8, *bounds)
        return cls(q[:, ::2] | q[:, 1::2] << 4, scale, zero_point, group, weight.dtype)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The dequantized matrix, [R, C]."""
        q = torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(1)
        return dequantize_affine(
            *(q, (1, self.group), self.scale, self.zero_point, torch.uint8, 0, 15),
            output_dtype=dtype,
        )


@PackedInt4.implements(torch.ops.aten.linear.default)
@PackedInt4.implements_torch_function(F.linear)
def _linear(func: Any, types: Any, args: Any, kwargs: Any) -> Tensor:
    inputs, weight, *bias = args
    return F.linear(inputs, weight.unpacked(inputs.dtype), *bias, **(kwargs or {}))


def quantize(model: PreTrainedModel, kind: str) -> None:
    """Quantizes in place. kind: `int8`, a scale per row, or `int4`, a scale per group of a row.

    Raises ConfigError where the model has no linear layer that can be quantized.
    """
    before, output = weight_bytes(model), model.get_output_embeddings()
    _replace_conv1d(model)
    chosen = {m for m in model.modules() if isinstance(m, nn.Linear) and m is not output}
    if kind == "int4":
        # Smaller groups save no memory.
        chosen = {m for m in chosen if gcd(m.in_features, GROUP_SIZE) >= 8}
    if not chosen:
        raise ConfigError(
            f"teacher.quantization={kind}: a {type(model).__name__} of this size has no linear "
            "layer that can be quantized; set it to null."
        )
    share = sum(m.weight.numel() for m in chosen) / sum(p.numel() for p in model.parameters())
    if kind == "int8":
        quantize_(model, Int8WeightOnlyConfig(), lambda module, _: module in chosen)
    else:
        for module in chosen:
            group = gcd(module.in_features, GROUP_SIZE)
            packed: Any = PackedInt4.from_weight(module.weight.detach(), group)
            module.weight = nn.Parameter(packed, requires_grad=False)
    log.info(
        "teacher: %.0f%% of the weights quantized to %s, %.4g MB instead of %.4g",
        *(100 * share, kind, weight_bytes(model) / 1e6, before / 1e6),
    )


def _replace_conv1d(model: Any) -> None:
    """Replaces GPT-2's `Conv1D`, a linear layer with a transposed weight, by `nn.Linear`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(1, 1, bias=True, device="meta")
            linear.in_features, linear.out_features = module.weight.shape
            linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), False)
            linear.bias = nn.Parameter(module.bias.detach(), False)
            model.set_submodule(name, linear)
