"""Several sources in one data set: the order of their examples, and how often each is used."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_distill.data.splits import SplitSources

FILE = "parts.safetensors"
DRAWS = 1024  # of sources at a time


@dataclass(frozen=True)
class Mixture:
    """names, weights: of the sources; without weights, each is used as often as it has examples.
    parts: of each split [D], the index of each item's source.
    """

    names: list[str]
    weights: list[float] | None
    parts: dict[str, Tensor]


def save_parts(parts: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Writes the source of each item of each split."""
    save_file(
        {split: torch.tensor(of_split).int() for split, of_split in parts.items()}, folder / FILE
    )


def load_mixture(sources: SplitSources, folder: Path) -> Mixture | None:
    if not sources.is_mixture:
        return None
    return Mixture(sources.names, sources.weights, load_file(folder / FILE))


class MixedExamples(Dataset[dict[str, Tensor]]):
    """A split's examples, ordered so that every prefix has the sources in proportion.

    parts: [N] the source of each of `examples`. weights: of the sources; None for their sizes.
    """

    def __init__(self, examples: Any, parts: Tensor, weights: Sequence[float] | None) -> None:
        self.examples = examples
        counts = parts.bincount()
        share = counts.tolist() if weights is None else weights
        # The n-th example of a source is due when (n + ½) / share examples were used.
        due = torch.empty(len(parts), dtype=torch.double)
        for part, count in enumerate(counts.tolist()):
            due[parts == part] = (torch.arange(count).double() + 0.5) / share[part]
        self.order = due.argsort(stable=True)
        self.parts = parts[self.order]

    @property
    def positions(self) -> int:
        positions: int = self.examples.positions
        return positions

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example: dict[str, Tensor] = self.examples[int(self.order[index])]
        return {**example, "block": torch.tensor(index)}


def parts_of(examples: Any) -> Tensor | None:
    """The source of each example [N], also of a part of them; None where it is not known."""
    if isinstance(examples, Subset):
        whole = parts_of(examples.dataset)
        return None if whole is None else whole[torch.as_tensor(list(examples.indices))]
    return getattr(examples, "parts", None)


def shuffled(
    groups: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator
) -> Iterator[int]:
    """Endless indices: each from a group that is drawn by its weight, in passes over the group.

    groups: the indices of each. Each pass is shuffled anew. One group takes no draws.
    """
    orders: list[Iterator[int]] = [iter(()) for _ in groups]
    while True:
        drawn = [0] * DRAWS
        if len(groups) > 1:
            probabilities = torch.tensor(weights, dtype=torch.double)
            draws = torch.multinomial(probabilities, DRAWS, replacement=True, generator=generator)
            drawn = draws.tolist()
        for number in drawn:
            if (index := next(orders[number], None)) is None:
                order = torch.randperm(len(groups[number]), generator=generator)
                orders[number] = iter(groups[number][order].tolist())
                index = next(orders[number])
            yield index
