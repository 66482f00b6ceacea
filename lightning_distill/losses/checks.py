"""Checks of the objective's settings, most of them without torch.

Messages of a divergence name a parameter; the objective adds `loss.`.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightning_distill.errors import unknown_name
from lightning_distill.losses.schedules import LossWeights

if TYPE_CHECKING:
    from torch import Tensor

OBJECTIVE = "lightning_distill.losses.Objective"

REQUIRED = {"temperature", "alpha", "hard_weight", "hard_target", "label_smoothing"}
HARD_TARGETS = ("labels", "teacher")
COMPARED = ("probabilities", "logits")


def check_range(name: str, value: Any, low: float, high: float, below: bool = False) -> None:
    """Raises ValueError unless value is a number from low to high; below: less than high."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (below and value == high):
        end = f"to below {high:g}" if below else f"to {high:g}"
        raise ValueError(f"{name}={value} must be a number from {low:g} {end}")


def problems_of_divergence(
    divergence: "Callable[..., Tensor]", settings: dict[str, Any]
) -> Iterator[str]:
    """What is wrong with a divergence's own settings, or with the shape that it returns."""
    import torch

    known = list(inspect.signature(divergence).parameters)[2:]
    if unknown := [name for name in settings if name not in known]:
        yield from (f"loss.{name} is not a setting of this loss" for name in unknown)
        return
    # A call on two tokens, so that what it refuses is refused before anything is trained.
    q, p = torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.6, 0.4]]).log()
    try:
        shape = divergence(q, p, **settings).shape
    except ValueError as error:
        names = tuple(f"{name}=" for name in known)
        yield f"loss{'.' if str(error).startswith(names) else ': '}{error}".rstrip(".")
    else:
        if shape != (1,):
            yield f"the loss makes {list(shape)} of [N, V] = [1, 2]; it must make [1], [N]"


def problems_of_loss(node: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the config node of an `Objective`; its divergence needs torch.

    Nothing of a node that lacks a setting: that is refused by its name.
    """
    if node.get("_target_") != OBJECTIVE or not node.keys() >= REQUIRED:
        return
    yield from LossWeights(node["temperature"], node["alpha"], node["hard_weight"]).problems
    yield from problems_of_settings(
        node["hard_target"],
        node["label_smoothing"],
        node.get("compares", "probabilities"),
        node.get("shared_vocabulary", True),
    )


def problems_of_settings(
    hard_target: Any, label_smoothing: Any, compares: Any, shared_vocabulary: bool
) -> Iterator[str]:
    """What is wrong with the objective's settings other than its weights."""
    if hard_target not in HARD_TARGETS:
        yield str(unknown_name("loss.hard_target", hard_target, HARD_TARGETS)).rstrip(".")
    elif hard_target == "teacher" and not shared_vocabulary:
        yield "loss.hard_target=teacher needs a loss for one shared vocabulary"
    try:
        check_range("label_smoothing", label_smoothing, 0, 1, below=True)
    except ValueError as error:
        yield f"loss.{error}"
    if label_smoothing and hard_target == "teacher":
        yield "loss.label_smoothing is of labels; set it to 0 with loss.hard_target=teacher"
    if compares not in COMPARED:
        yield f"loss.compares={compares} must be one of {', '.join(COMPARED)}"
