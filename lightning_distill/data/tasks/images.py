"""The task of an image classifier: one class per image."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel

from lightning_distill.data.hashes import sha256
from lightning_distill.data.sources.base import Pixels, Source
from lightning_distill.data.splits import SPLITS, Held, SplitItems, SplitSources
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.metrics.quality import ClassQuality
from lightning_distill.models.classifier import adapt_head
from lightning_distill.models.sizes import Size
from lightning_distill.models.vision import vit
from lightning_distill.storage.artifacts import Store

VERSION = 1  # raise it when this file starts to give other pixels for the same images
SHADES = " ·:+#@"  # from dark to bright: how samples show an image
MAX_WIDTH = 16  # pixels of a sample; each is two characters


class LabelledImages(Dataset[dict[str, Tensor]]):
    """pixels: [N, C, H, W], 0 to 255. labels: [N]. indices: those of the N that are used.

    `pixel_values` are (pixels / 255 − mean) / std, as transformers' image processors make them.
    """

    positions = 1

    def __init__(
        self, pixels: Tensor, labels: Tensor, indices: Tensor, mean: float, std: float
    ) -> None:
        self.pixels, self.labels, self.indices = pixels, labels, indices
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.indices[index]
        return {
            "pixel_values": (self.pixels[image].float() / 255 - self.mean) / self.std,
            "labels": self.labels[image],
            "block": torch.tensor(index),
        }


class Images(DistillationData):
    """Images of one size, and the class of each.

    source, held_out: called with the remaining settings, see `SplitSources`.
    omit: a class that the student's transfer set lacks, None for none. The teacher is trained on
    it, and the test split has it (Hinton et al. 2015, section 3).
    image_mean, image_std: of all channels, as in a pretrained model's preprocessor_config.json.
    """

    auto_class = AutoModelForImageClassification
    model_kind, hub_task = "image classifier", "image-classification"
    has_tokenizer = False

    def __init__(
        self,
        source: Callable[..., Source[tuple[Pixels, str]]],
        batch_size: int,
        held_out: Held,
        omit: str | int | None,
        image_mean: float,
        image_std: float,
        num_workers: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.sources = SplitSources(source, settings, held_out)
        self.omit = None if omit is None else str(omit)
        self.mean, self.std = image_mean, image_std

    def prepare(self, store: Store, tokenizer: Any = None) -> None:
        inputs = {**self.sources.fingerprint(), "edition": VERSION}
        self.artifact = store.get("images", inputs, self._make_images)
        self._tensors = load_file(self.artifact.folder / "images.safetensors")
        self.names: list[str] = json.loads((self.artifact.folder / "classes.json").read_text())
        if self.omit is not None and self.omit not in self.names:
            raise unknown_name("data.omit", self.omit, self.names)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def image_size(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self._tensors["train"].shape[1:]
        return channels, height, width

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
        omitted = -1 if omit is None else self.names.index(omit)
        indices = (labels != omitted).nonzero()[:, 0]
        return LabelledImages(self._tensors[split], labels, indices, self.mean, self.std)

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self._tensors[f'{s}_labels']):,} {s}" for s in SPLITS)
        channels, height, width = self.image_size
        omitted = f"; no {self.omit} in the transfer set" if self.omit is not None else ""
        return (
            f"images: {sizes}; {channels} × {height} × {width}; "
            f"{self.num_classes} classes{omitted}; {self.artifact.key}"
        )

    def check_labels(self) -> str:
        counts = []
        for split in SPLITS:
            present = self._tensors[f"{split}_labels"].unique().tolist()
            missing = [name for i, name in enumerate(self.names) if i not in present]
            if split == "train" and missing:
                raise ConfigError(f"data: the train split has no image of {', '.join(missing)}.")
            counts.append(f"{len(present)} of {self.num_classes} classes in {split}")
        return ", ".join(counts)

    def new_model(self, size: Size) -> PreTrainedModel:
        return vit(size, self.image_size, self.label_settings)

    @property
    def label_settings(self) -> dict[str, Any]:
        """The classes as a model's config names them."""
        ids = dict(enumerate(self.names))
        return {"id2label": ids, "label2id": {name: i for i, name in ids.items()}}

    def adapt_model(self, model: PreTrainedModel, name: str, is_trained: bool) -> None:
        adapt_head(model, name, self.names, is_trained)

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Runs the model once: its config does not say which images it accepts."""
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
                f"{name} predicts {logits.shape[-1]} classes, the images have "
                f"{self.num_classes}: {', '.join(self.names[:20])}."
            )

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Saves model and image processor, as transformers' pipeline loads them."""
        from transformers.models.vit import ViTImageProcessorPil  # slow to import

        super().save(model, folder)
        channels, height, width = self.image_size
        processor = ViTImageProcessorPil(
            size={"height": height, "width": width},
            image_mean=[self.mean] * channels,
            image_std=[self.std] * channels,
        )
        processor.save_pretrained(folder)

    def quality_metric(self) -> nn.Module:
        if self.omit is None:
            return ClassQuality(self.num_classes)
        omitted = self.names.index(self.omit)
        frequency = float((self._tensors["train_labels"] == omitted).float().mean())
        return ClassQuality(self.num_classes, omitted, frequency)

    def learned_example(self, index: int) -> str:
        channels, height, width = self.image_size
        name = self.names[int(self._tensors["train_labels"][index])]
        return f"⟦image of {channels} × {height} × {width}⟧ {name}"

    def sample_prompts(self) -> list[str]:
        prompts = []
        for index in self.sample_indices:
            name = self.names[int(self._tensors["test_labels"][index])]
            image = as_characters(self._tensors["test"][index])
            prompts.append(f"test image {index}, a {name}\n{image}\n")
        return prompts

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The most probable class, with its probability."""
        example = self.examples("test")[self.sample_indices[number]]
        pixels = example["pixel_values"][None].to(model.device, model.dtype)
        p, best = model.eval()(pixel_values=pixels).logits[0].softmax(-1).max(-1)
        return f"{self.names[int(best)]} ({float(p):.0%})"

    @cached_property
    def _splits(self) -> dict[str, SplitItems[tuple[Pixels, str]]]:
        """(pixels, class) of each split."""
        return self.sources.split(_by_pixels, "different images")

    def _make_images(self, folder: Path) -> None:
        names = sorted({name for split in SPLITS for _, name in self._splits[split].items})
        if len(names) < 2:
            raise ConfigError(f"data.path: all images are of one class, {', '.join(names)}.")
        tensors: dict[str, Tensor] = {}
        for split in SPLITS:
            rows = self._splits[split].items
            tensors[split] = torch.from_numpy(np.stack([pixels for pixels, _ in rows]))
            tensors[f"{split}_labels"] = torch.tensor([names.index(name) for _, name in rows])
        save_file(tensors, folder / "images.safetensors")
        (folder / "classes.json").write_text(json.dumps(names))


def _by_pixels(source: Source[tuple[Pixels, str]]) -> Iterator[tuple[str, tuple[Pixels, str]]]:
    for pixels, name in source.rows():
        yield sha256(f"{pixels.shape} {pixels.tobytes().hex()}"), (pixels, name)


def as_characters(pixels: Tensor) -> str:
    """[C, H, W] from 0 to 255 as lines of characters."""
    gray = pixels.float().mean(0, keepdim=True)
    height, width = gray.shape[1:]
    if width > MAX_WIDTH:
        shape = (max(1, round(height * MAX_WIDTH / width)), MAX_WIDTH)
        gray = nn.functional.adaptive_avg_pool2d(gray, shape)
    levels = (gray[0] / 256 * len(SHADES)).int()
    return "\n".join("".join(SHADES[i] * 2 for i in row) for row in levels.tolist())
