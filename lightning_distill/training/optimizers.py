"""Optimizers and schedules are tried on a weight of their own, before anything is made for them."""

import inspect
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_distill.config.validation import each_teacher
from lightning_distill.errors import ConfigError, first_line
from lightning_distill.training.module import RUN_LENGTH

# What constructors raise of values that they cannot use, and of arguments that they do not know.
REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError)


def check_optimizers(cfg: DictConfig, student: bool = True) -> None:
    """Raises ConfigError where what trains the teachers, or the student too, refuses its
    settings."""
    for one in each_teacher(cfg):
        _check("teacher.", one.teacher, one.teacher.max_steps)
    if student:
        _check("", cfg, cfg.student.max_steps)


def _check(prefix: str, node: DictConfig, steps: int) -> None:
    if not steps:  # it is not trained
        return
    group = "optimizer"
    try:
        weight = torch.nn.Parameter(torch.zeros(1, 1))
        optimizer = instantiate(node.optimizer)([{"params": [weight]}])
        group = "schedule"
        make: Any = instantiate(node.schedule)
        known = inspect.signature(make).parameters
        make(optimizer, **{name: steps for name in RUN_LENGTH if name in known})
    except REFUSALS as error:
        given = {key: value for key, value in node[group].items() if not key.startswith("_")}
        raise ConfigError(f"{prefix}{group}={given}: {first_line(error)}.") from error
