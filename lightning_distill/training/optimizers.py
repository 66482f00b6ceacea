"""A check of the optimizer and the schedule, on a single weight, before anything is trained."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from lightning_distill.errors import ConfigError, first_line
from lightning_distill.training.module import RUN_LENGTH

# Raised by constructors for invalid arguments.
INVALID_ARGUMENTS = (ValueError, TypeError, LookupError, ArithmeticError)

USUAL_STEPS = 1000  # in place of a number that is not known yet


def check_optimizer(
    prefix: str,
    optimizer: Callable[..., Any],
    schedule: Callable[..., Any],
    steps: int | None,
) -> None:
    """Raises ConfigError where the optimizer or the schedule refuses its settings.

    prefix: of the config keys, `teacher.` or empty. optimizer, schedule: what training calls; of
    a partial, the message shows the arguments. steps: optimizer steps, None where they are not
    known yet; 0 skips the check.
    """
    if steps == 0:
        return
    steps = steps or USUAL_STEPS
    group, called = "optimizer", optimizer
    try:
        weight = torch.nn.Parameter(torch.zeros(1, 1))
        made = optimizer([{"params": [weight]}])
        group, called = "schedule", schedule
        accepted = inspect.signature(schedule).parameters
        schedule(made, **{name: steps for name in RUN_LENGTH if name in accepted})
    except INVALID_ARGUMENTS as error:
        settings = getattr(called, "keywords", {})
        raise ConfigError(f"{prefix}{group}={settings}: {first_line(error)}.") from error
