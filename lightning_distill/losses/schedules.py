"""Temperatures and alphas that change as the training goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_distill import ConfigError

SHAPES = ("linear", "cosine", "warmup")
WARMUP = 0.1  # of the run, where `warmup` is given no steps


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` over the first `steps` steps (None: of the whole run), then constant.

    linear: at an even pace. cosine: half a cosine, slow at both ends. warmup: linear over the
    first tenth of the run, or over `steps`.
    """

    shape: str
    start: float
    end: float
    steps: int | None = None

    def at(self, step: int, max_steps: int) -> float:
        """The value for the step that follows `step` finished ones, of `max_steps`."""
        steps = self.steps or (WARMUP if self.shape == "warmup" else 1) * max_steps
        done = min(step / steps, 1.0) if steps else 1.0
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    def __str__(self) -> str:
        if self.start == self.end:
            return f"{self.end:g}"
        return f"{{shape: {self.shape}, start: {self.start:g}, end: {self.end:g}}}"


def make_ramp(key: str, value: Any) -> Ramp:
    """A number, or {shape, start, end, steps}, of which `end` is needed. Raises ConfigError."""
    if not isinstance(value, Mapping):
        return Ramp("linear", _number(key, value), _number(key, value))
    said = f"{key}={dict(value)}"
    if unknown := [str(name) for name in value if name not in ("shape", "start", "end", "steps")]:
        raise ConfigError(f"{said}: a schedule has shape, start, end, steps, no {unknown[0]}.")
    if value.get("end") is None:
        raise ConfigError(
            f"{said} is a schedule without an end; give the value it ends at, as in "
            f"'{key}={{shape: linear, start: 4, end: 1}}'."
        )
    shape, steps = value.get("shape", "linear"), value.get("steps")
    if shape not in SHAPES:
        raise ConfigError(f"{said}: its shape must be one of {', '.join(SHAPES)}.")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ConfigError(f"{said}: its steps must be a whole number of at least 1.")
    start = _number(f"{key}.start", value.get("start", 0))
    return Ramp(shape, start, _number(f"{key}.end", value["end"]), steps)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a number, or a schedule with an end.")
    return float(value)
