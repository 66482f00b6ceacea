"""Small image classifiers: transformers' ViT and ConvNeXt."""

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
    """The ViT (Dosovitskiy et al. 2020) that `student=s` stands for; matrices have std 1 / √width.

    image: C, H, W. labels: the entries of the config for them. The patch is the largest power of 2
    up to 16 that divides both sides and fits the shorter one at least four times.
    """
    channels, height, width = image
    divisors = [p for p in (1, 2, 4, 8, 16) if not height % p and not width % p]
    patch = max(p for p in divisors if p <= max(1, min(height, width) // 4))
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
    """A ConvNeXt (Liu et al. 2022) that starts at full resolution and halves it at each stage.

    hidden_sizes, depths: channels and blocks of each stage. Its layer norms, unlike batch norms,
    make the outputs independent of the micro-batch size and of the number of devices.
    """
    if data.auto_class is not AutoModelForImageClassification:
        raise ConfigError("convnet is a model for images; choose a size, as in student=s.")
    if len(hidden_sizes) != len(depths) or not depths:
        raise ConfigError(
            f"hidden_sizes={list(hidden_sizes)} and depths={list(depths)} must have one entry per "
            "stage."
        )
    config = ConvNextConfig(
        num_channels=data.image_size[0],
        image_size=max(data.image_size[1:]),
        patch_size=1,
        num_stages=len(depths),
        hidden_sizes=list(hidden_sizes),
        depths=list(depths),
        layer_scale_init_value=1.0,  # with transformers' 1e-6, a few blocks learn slowly
        **data.label_settings,
    )
    return ConvNextForImageClassification(config)
