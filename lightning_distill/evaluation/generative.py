"""Scores of what models generate: the task's metrics, lm-eval tasks, and the speed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation import generation_speed, lm_eval_tasks
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.teacher import Teacher

log = logging.getLogger(__name__)


def check_request(request: EvaluationRequest, task: type[DistillationData]) -> None:
    """Raises ConfigError where the request cannot be met, before anything is trained."""
    if (request.tasks or request.speed) and not task.is_generative:
        raise ConfigError(
            "evaluate.tasks and evaluate.speed need generative models, and those of this data are "
            "not. Set evaluate.tasks=[] evaluate.speed=false."
        )
    lm_eval_tasks.load_tasks(request)


def score_generation(
    request: EvaluationRequest,
    data: DistillationData,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
    device: torch.device,
    teacher_scores: dict[str, float],
) -> dict[str, dict[str, Any]]:
    """The scores of each role: the task's, and `tasks` and `speed` where requested.

    Of an ensemble, the first model is scored. Empty for models that generate no text.
    teacher_scores: see `score_teacher_answers`.
    """
    if not data.is_generative:
        return {}
    models, role_data = {}, {}
    if student is not None:
        models["student"], role_data["student"] = student, data
    if teacher is not None:
        models["teacher"], role_data["teacher"] = teacher.models[0], teacher.data
    tasks = lm_eval_tasks.load_tasks(request)
    if tasks or request.speed:
        _log_scored_models(teacher)
    with moved_to(device, list(models.values())):
        scores: dict[str, dict[str, Any]] = {role: {} for role in models}
        if teacher is not None:
            scores["teacher"] |= teacher_scores
        if student is not None:
            scores["student"] |= data.score_generation(student)
        if tasks:
            for role, model in models.items():
                reuse_key = teacher.hash if teacher and role == "teacher" else None
                tokenizer = role_data[role].tokenizer
                scores[role]["tasks"] = tasks.evaluate(model, tokenizer, reuse_key)
            table = lm_eval_tasks.scores_table({role: one["tasks"] for role, one in scores.items()})
            log.info("evaluate.tasks\n%s", table)
        if request.speed:
            speeds = generation_speed.measure_speeds(models)
            log.info("evaluate.speed\n%s", generation_speed.describe_speeds(speeds))
            for role, speed in speeds.items():
                scores[role]["speed"] = speed
    return scores


def score_teacher_answers(teacher: Teacher, store: Store, device: torch.device) -> dict[str, float]:
    """The task's scores of what the teacher generates, which depend on no student: an artifact,
    which the jobs of a sweep share. All ranks call this."""
    data = teacher.data
    if type(data).score_generation is DistillationData.score_generation:
        return {}  # its answers have no scores

    def make(folder: Path) -> dict[str, Any]:
        model = teacher.models[0]
        with moved_to(device, [model]):
            return data.score_generation(model)

    made_from = {
        "teacher": teacher.hash,
        "tokens": data.artifact.key,
        "examples": data.example_settings,
        "prompts": len(data.scored_prompts()),
    }
    content: dict[str, float] = store.get("answers", made_from, make).manifest["content"]
    return content


def _log_scored_models(teacher: Teacher | None) -> None:
    if teacher is None:
        log.info("evaluate: the teacher does not exist; only the student is scored")
    elif len(teacher.models) > 1:
        log.info("evaluate: only the first of %s teachers is scored", len(teacher.models))


@contextmanager
def moved_to(device: torch.device, models: list[PreTrainedModel]) -> Iterator[None]:
    """Lightning leaves models on the CPU after a test."""
    moved = [(model, model.device) for model in models if model.device != device]
    for model, _ in moved:
        model.to(device)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for model, original in moved:
            model.to(original)  # type: ignore[arg-type]
