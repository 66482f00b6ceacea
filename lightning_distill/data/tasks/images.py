"""The task of an image classifier: one class for each image."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel

from lightning_distill.data.splits import SPLITS, sha256, split_by_hash
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.metrics.quality import ClassQuality
from lightning_distill.models.classifier import adapt_head
from lightning_distill.models.sizes import Size
from lightning_distill.models.vision import vit
from lightning_distill.storage.artifacts import Store

EDITION = 1  # raise it when this file starts to give other pixels for the same images
SHADES = " ·:+#@"  # from dark to bright: how samples show an image
WIDEST = 16  # characters of it

Pixels = NDArray[np.uint8]


class Source(Protocol):
    """What a file of this package offers: images, and a text that changes when they do."""

    def fingerprint(self) -> str: ...

    def images(self) -> Iterator[tuple[Pixels, str]]:
        """Each image, [C, H, W], and the name of its class."""


class LabelledImages(Dataset[dict[str, Tensor]]):
    """pixels: [N, C, H, W], 0 to 255. labels: [N]. numbers: [N], of each within its split.

    `pixel_values` are (pixels / 255 − mean) / std, as transformers' image processors make them.
    """

    positions = 1

    def __init__(
        self, pixels: Tensor, labels: Tensor, numbers: Tensor, mean: float, std: float
    ) -> None:
        self.pixels, self.labels, self.numbers = pixels, labels, numbers
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = self.numbers[index]
        return {
            "pixel_values": (self.pixels[number].float() / 255 - self.mean) / self.std,
            "labels": self.labels[number],
            "block": torch.tensor(index),
        }


class Images(DistillationData):
    """Images of one size, and the class of each.

    source: called with the remaining settings; the ones that only it needs.
    held_out: one image in so many is for validation, and one for the test.
    omit: a class that the student's transfer set lacks, None for none. The teacher has seen it, and
    the test asks for it (Hinton et al. 2015, section 3).
    image_mean, image_std: of all channels; what a pretrained model's preprocessor_config.json says.
    """

    auto_class = AutoModelForImageClassification
    model_kind, hub_task = "image classifier", "image-classification"
    has_tokenizer = False

    def __init__(
        self,
        source: Callable[..., Source],
        batch_size: int,
        held_out: int,
        omit: str | int | None,
        image_mean: float,
        image_std: float,
        num_workers: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.source = source(**settings)
        self.held_out, self.omit = held_out, None if omit is None else str(omit)
        self.mean, self.std = image_mean, image_std

    def prepare(self, store: Store, tokenizer: Any = None) -> None:
        made_from = {"source": self.source.fingerprint(), "edition": EDITION}
        made_from["held_out"] = self.held_out
        self.artifact = store.get("images", made_from, self._make)
        self._tensors = load_file(self.artifact.folder / "images.safetensors")
        self.names: list[str] = json.loads((self.artifact.folder / "classes.json").read_text())
        if self.omit is not None and self.omit not in self.names:
            raise unknown_name("data.omit", self.omit, self.names)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def example_settings(self) -> dict[str, Any]:
        return {"data.image_mean": self.mean, "data.image_std": self.std}

    @property
    def transfer_set_settings(self) -> dict[str, Any]:
        return {"data.omit": self.omit}

    def examples(self, split: str) -> LabelledImages:
        return self._examples(split, None)

    def transfer_set(self) -> LabelledImages:
        return self._examples("train", self.omit)

    def _examples(self, split: str, omit: str | None) -> LabelledImages:
        labels = self._tensors[f"{split}_labels"]
        left = -1 if omit is None else self.names.index(omit)
        numbers = (labels != left).nonzero()[:, 0]
        return LabelledImages(self._tensors[split], labels, numbers, self.mean, self.std)

    def new_model(self, size: Size) -> PreTrainedModel:
        return vit(size, self.image_size, self.labels)

    @property
    def image_size(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self._tensors["train"].shape[1:]
        return channels, height, width

    @property
    def labels(self) -> dict[str, Any]:
        """As a model's config has them."""
        ids = dict(enumerate(self.names))
        return {"id2label": ids, "label2id": {name: i for i, name in ids.items()}}

    def adapt_model(self, model: PreTrainedModel, name: str, trains: bool) -> None:
        adapt_head(model, name, self.names, trains)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """By trying it: what a model refuses is not told by its config."""
        channels, height, width = self.image_size
        image = torch.zeros(1, channels, height, width, device=model.device, dtype=model.dtype)
        try:
            with torch.no_grad():
                logits: Tensor = model(pixel_values=image).logits
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{name} cannot read images of {channels} × {height} × {width}: {reason}"
            ) from error
        if logits.shape[-1] != self.num_classes:
            raise ConfigError(
                f"{name} tells {logits.shape[-1]} classes apart, the images are of "
                f"{self.num_classes}: {', '.join(self.names[:20])}."
            )

    def quality_metric(self) -> nn.Module:
        if self.omit is None:
            return ClassQuality(self.num_classes)
        return ClassQuality(self.num_classes, self.names.index(self.omit), self._frequency())

    def _frequency(self) -> float:
        """Of the omitted class among all images that the teacher trains on."""
        assert self.omit is not None
        return float((self._tensors["train_labels"] == self.names.index(self.omit)).float().mean())

    def sample_prompts(self) -> list[str]:
        shown = []
        for number in self.sample_indices:
            label = int(self._tensors["test_labels"][number])
            image = drawn(self._tensors["test"][number])
            shown.append(f"test image {number}, a {self.names[label]}\n{image}\n")
        return shown

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """Its likeliest class, and how probable."""
        example = self.examples("test")[self.sample_indices[number]]
        pixels = example["pixel_values"][None].to(model.device, model.dtype)
        p, best = model.eval()(pixel_values=pixels).logits[0].softmax(-1).max(-1)
        return f"{self.names[int(best)]} ({float(p):.0%})"

    def check_labels(self) -> str:
        said = []
        for split in SPLITS:
            there = self._tensors[f"{split}_labels"].unique().tolist()
            lacks = [name for i, name in enumerate(self.names) if i not in there]
            if split == "train" and lacks:
                raise ConfigError(f"data: no image to train on is a {', a '.join(lacks)}.")
            said.append(f"{len(there)} of {self.num_classes} classes in {split}")
        return ", ".join(said)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Model and image processor, as a folder that transformers' pipeline loads."""
        from transformers.models.vit import ViTImageProcessorPil  # slow to import

        super().save(model, folder)
        channels, height, width = self.image_size
        processor = ViTImageProcessorPil(
            size={"height": height, "width": width},
            image_mean=[self.mean] * channels,
            image_std=[self.std] * channels,
        )
        processor.save_pretrained(folder)

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self._tensors[f'{s}_labels']):,} {s}" for s in SPLITS)
        channels, height, width = self.image_size
        left = f"; no {self.omit} in the transfer set" if self.omit is not None else ""
        return (
            f"images: {sizes}; {channels} × {height} × {width}; {self.num_classes} classes{left}; "
            f"{self.artifact.key}"
        )

    @cached_property
    def _found(self) -> dict[str, list[tuple[Pixels, str]]]:
        hashed = (
            (sha256(f"{pixels.shape} {pixels.tobytes().hex()}"), (pixels, name))
            for pixels, name in self.source.images()
        )
        return split_by_hash(hashed, "different images", self.held_out)

    def _make(self, folder: Path) -> None:
        every = sorted({name for split in SPLITS for _, name in self._found[split]})
        if len(every) < 2:
            raise ConfigError(f"data.path: the images are of one class alone, {', '.join(every)}.")
        tensors: dict[str, Tensor] = {}
        for split in SPLITS:
            found = self._found[split]
            tensors[split] = torch.from_numpy(np.stack([pixels for pixels, _ in found]))
            tensors[f"{split}_labels"] = torch.tensor([every.index(name) for _, name in found])
        save_file(tensors, folder / "images.safetensors")
        (folder / "classes.json").write_text(json.dumps(every))


def drawn(pixels: Tensor) -> str:
    """[C, H, W] of 0 to 255 as lines of characters, bright where it is."""
    gray = pixels.float().mean(0, keepdim=True)
    height, width = gray.shape[1:]
    if width > WIDEST:
        shape = (max(1, round(height * WIDEST / width)), WIDEST)
        gray = nn.functional.adaptive_avg_pool2d(gray, shape)
    levels = (gray[0] / 256 * len(SHADES)).int()
    return "\n".join("".join(SHADES[i] * 2 for i in row) for row in levels.tolist())
