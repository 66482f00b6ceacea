"""A check of the optimizer and the schedule, on a single weight, before anything is trained."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from lightning_distill.errors import ConfigError, first_line
from lightning_distill.training.module import RUN_LENGTH

# Raised by constructors for invalid arguments.
INVALID_ARGUMENTS = (ValueError, TypeError, LookupError, ArithmeticError)


def check_optimizer(
    prefix: str,
    optimizer: Callable[[], Callable[..., Any]],
    schedule: Callable[[], Callable[..., Any]],
    steps: int,
    given: dict[str, dict[str, Any]],
) -> None:
    """Raises ConfigError where the optimizer or the schedule refuses its settings.

    prefix: of the config keys, `teacher.` or empty. optimizer, schedule: make the partials that
    training calls. steps: optimizer steps; 0 skips the check. given: the settings of both, for the
    message.
    """
    if not steps:
        return
    group = "optimizer"
    try:
        weight = torch.nn.Parameter(torch.zeros(1, 1))
        made = optimizer()([{"params": [weight]}])
        group = "schedule"
        make_schedule = schedule()
        accepted = inspect.signature(make_schedule).parameters
        make_schedule(made, **{name: steps for name in RUN_LENGTH if name in accepted})
    except INVALID_ARGUMENTS as error:
        settings = {key: value for key, value in given[group].items() if not key.startswith("_")}
        raise ConfigError(f"{prefix}{group}={settings}: {first_line(error)}.") from error
