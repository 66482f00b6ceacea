"""Small image classifiers from a few numbers: transformers' ViT and ConvNeXt."""

from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_distill.errors import ConfigError
from lightning_distill.models.sizes import Size


def vit(size: Size, image: tuple[int, int, int], labels: dict[str, Any]) -> PreTrainedModel:
    """What `student=s` is for images: at least 16 patches. image: C, H, W. labels: of the config.

    Raises ConfigError where the image cannot be cut into square patches.
    """
    channels, height, width = image
    fitting = [p for p in (1, 2, 4, 8, 16) if not height % p and not width % p]
    patch = max(p for p in fitting if p <= max(1, min(height, width) // 4))
    config = ViTConfig(
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        intermediate_size=-(-8 * size.hidden_size // 24) * 8,
        image_size=(height, width),
        patch_size=patch,
        num_channels=channels,
        initializer_range=size.hidden_size**-0.5,
        **labels,
    )
    return ViTForImageClassification(config)


def convnet(hidden_sizes: Sequence[int], depths: Sequence[int], data: Any) -> PreTrainedModel:
    """A ConvNeXt (Liu et al. 2022) that begins at full resolution and halves it at each stage.

    Layer norm instead of batch norm: what it says of an image does not depend on the others of the
    batch, so micro-batches and devices change nothing.
    hidden_sizes, depths: channels and blocks of each stage.
    """
    if data.auto_class is not AutoModelForImageClassification:
        raise ConfigError("convnet is a model for images; choose a size, as in student=s.")
    if len(hidden_sizes) != len(depths) or not depths:
        raise ConfigError(
            f"hidden_sizes={list(hidden_sizes)} and depths={list(depths)} must name as many stages."
        )
    config = ConvNextConfig(
        num_channels=data.image_size[0],
        image_size=max(data.image_size[1:]),
        patch_size=1,
        num_stages=len(depths),
        hidden_sizes=list(hidden_sizes),
        depths=list(depths),
        layer_scale_init_value=1.0,  # made small, the few blocks of a small net learn slowly
        **data.label_settings,
    )
    return ConvNextForImageClassification(config)
