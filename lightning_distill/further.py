"""What is measured of student and teacher where `evaluate` asks for it: tasks, speed and size."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

from lightning_distill import ConfigError, harness, speed
from lightning_distill.data import DataModule
from lightning_distill.teacher import Teacher

log = logging.getLogger(__name__)


def check(asked: DictConfig, data: DataModule) -> None:
    """Raises ConfigError where that cannot be measured, before anything is trained."""
    if (asked.get("tasks") or asked.get("speed")) and not data.writes:
        raise ConfigError(
            "evaluate.tasks and evaluate.speed are for models that write, which those of this "
            "data are not. Set evaluate.tasks=[] evaluate.speed=false."
        )
    harness.load(asked)


def measure(
    asked: DictConfig,
    data: DataModule,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """`tasks` and `speed` of each role, as far as they are asked for; of several teachers the
    first one's."""
    tasks = harness.load(asked)
    if not tasks and not asked.get("speed"):
        return {}
    models, tokenizers = {}, {}
    if student is not None:
        models["student"], tokenizers["student"] = student, data.tokenizer
    if teacher is not None:
        models["teacher"], tokenizers["teacher"] = teacher.models[0], teacher.data.tokenizer
        if len(teacher.models) > 1:
            log.info("evaluate: of %s teachers the first one is asked", len(teacher.models))
    elif student is not None:
        log.info("evaluate: without a teacher that is here, the student alone")
    found: dict[str, dict[str, Any]] = {role: {} for role in models}
    with _on(device, list(models.values())):
        if tasks:
            known = {"teacher": teacher.hash if teacher else None}
            scores = {
                role: tasks.scores(model, tokenizers[role], known.get(role))
                for role, model in models.items()
            }
            log.info("evaluate.tasks\n%s", harness.table(scores))
            for role, one in scores.items():
                found[role]["tasks"] = one
        if asked.get("speed"):
            speeds = speed.speeds(models)
            log.info("evaluate.speed\n%s", speed.compare(speeds))
            for role, numbers in speeds.items():
                found[role]["speed"] = numbers
    return found


@contextmanager
def _on(device: torch.device, models: list[PreTrainedModel]) -> Iterator[None]:
    """There for a while: Lightning leaves models on the processor when it is done with them."""
    before = [(model, model.device) for model in models if model.device != device]
    for model, _ in before:
        model.to(device)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for model, place in before:
            model.to(place)  # type: ignore[arg-type]
