"""The temperature and the weights of the objective's terms, constant or scheduled over steps."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_distill.config.schema import is_number
from lightning_distill.errors import ConfigError

SHAPES = ("linear", "cosine", "warmup")
WARMUP = 0.1  # of all steps, where a `warmup` gives no number of steps


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` over the first `steps` steps (None: of the whole run), then constant.

    shape: `linear`, at a constant rate; `cosine`, half a cosine, slow at both ends; or `warmup`,
        linear over the first tenth of the run, or over `steps`.
    """

    shape: str
    start: float
    end: float
    steps: int | None = None

    @property
    def ends(self) -> tuple[float, float]:
        return self.start, self.end

    def at(self, step: int, max_steps: int) -> float:
        """The value for the next step, after `step` of `max_steps` are finished."""
        steps = self.steps or (WARMUP if self.shape == "warmup" else 1) * max_steps
        done = min(step / steps, 1.0) if steps else 1.0
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    def __str__(self) -> str:
        if self.start == self.end:
            return f"{self.end:g}"
        return f"{{shape: {self.shape}, start: {self.start:g}, end: {self.end:g}}}"


class LossWeights:
    """The temperature, and the weights of the hard and the soft term.

    temperature, current: the values at the current step, which `set_step` sets.
    problems: what is wrong with the settings, one line each.
    """

    def __init__(self, temperature: Any, alpha: Any, hard_weight: Any) -> None:
        self.schedules: dict[str, Schedule] = {}
        self.hard_weight = hard_weight
        self.problems = [*self._read(temperature=temperature, alpha=alpha), *self._check()]
        if not self.problems:
            self.set_step(0, 1)

    def set_step(self, step: int, max_steps: int) -> None:
        """Takes the values for the next step, after `step` of `max_steps` are finished."""
        self.temperature = self.schedules["temperature"].at(step, max_steps)
        self.alpha = self.schedules["alpha"].at(step, max_steps)
        hard = 1 - self.alpha if self.hard_weight == "complement" else float(self.hard_weight)
        self.current = {"hard": hard, "soft": self.alpha}

    def uses(self, term: str) -> bool:
        """Whether `hard` or `soft` has a weight above 0 at any step."""
        alpha = self.schedules["alpha"]
        if term == "soft":
            return max(alpha.ends) > 0
        return min(alpha.ends) < 1 if self.hard_weight == "complement" else self.hard_weight > 0

    def _read(self, **settings: Any) -> Iterator[str]:
        for name, value in settings.items():
            try:
                self.schedules[name] = make_schedule(f"loss.{name}", value)
            except ConfigError as error:
                yield str(error).rstrip(".")

    def _check(self) -> Iterator[str]:
        temperature, alpha = self.schedules.get("temperature"), self.schedules.get("alpha")
        hard = self.hard_weight
        if temperature and min(temperature.ends) <= 0:
            yield f"loss.temperature={temperature} must be a number above 0"
        if alpha and min(alpha.ends) < 0:
            yield f"loss.alpha={alpha} must be a number from 0"
        if hard == "complement":
            if alpha and max(alpha.ends) > 1:
                yield (
                    "loss.hard_weight=complement is 1 − alpha: "
                    f"loss.alpha={alpha} must be at most 1"
                )
        elif not is_number(hard) or hard < 0:
            yield f"loss.hard_weight={hard} must be a number from 0, or complement"


def make_schedule(key: str, value: Any) -> Schedule:
    """From a number, or from {shape, start, end, steps}, which needs `end`. Raises ConfigError."""
    if not isinstance(value, Mapping):
        return Schedule("linear", _number(key, value), _number(key, value))
    setting = f"{key}={dict(value)}"
    if unknown := [str(name) for name in value if name not in ("shape", "start", "end", "steps")]:
        raise ConfigError(f"{setting}: a schedule has shape, start, end, steps, no {unknown[0]}.")
    if value.get("end") is None:
        raise ConfigError(
            f"{setting} is a schedule without an end; give the value that it ends at, as in "
            f"'{key}={{shape: linear, start: 4, end: 1}}'."
        )
    shape, steps = value.get("shape", "linear"), value.get("steps")
    if shape not in SHAPES:
        raise ConfigError(f"{setting}: its shape must be one of {', '.join(SHAPES)}.")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ConfigError(f"{setting}: its steps must be a whole number of at least 1.")
    start = _number(f"{key}.start", value.get("start", 0))
    return Schedule(shape, start, _number(f"{key}.end", value["end"]), steps)


def _number(key: str, value: Any) -> float:
    if not is_number(value):
        raise ConfigError(
            f"{key}={value} must be a number, or a schedule with an end; -m {key}=1,2 sweeps over "
            "two."
        )
    return float(value)
