"""Student and teacher on the held-out test split, and what they generate from its prompts."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_distill.constants import PREDICTIONS, SAMPLES
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import uses_fsdp
from lightning_distill.evaluation.answer_time import answer_seconds
from lightning_distill.evaluation.differences import token_differences
from lightning_distill.evaluation.generative import (
    moved_to,
    score_generation,
    score_teacher_answers,
)
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.evaluation.test_split import evaluate
from lightning_distill.models import pretrained
from lightning_distill.storage.artifacts import Store, write_atomic
from lightning_distill.training.teacher import Teacher
from lightning_distill.training.trainer import TrainerFactory

log = logging.getLogger(__name__)


def evaluate_all(
    request: EvaluationRequest,
    trainers: TrainerFactory,
    data: DistillationData,
    folder: Path,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
    seed: int,
    store: Store,
    log_samples: Callable[[list[dict[str, str]]], None] | None = None,
) -> dict[str, Any]:
    """Scores of `student` and `teacher` for `results.json`.

    Writes `samples.json`, and for the report `predictions.json`: the reliability of both models'
    confidences, and the test tokens on which they differ most.
    student: the one that is saved in `folder`. A teacher behind a server is not scored.
    """
    teacher = None if teacher and teacher.api else teacher
    trainer = trainers.trainer(folder, "on the test split")
    student = _unsharded(trainer, data, folder, student, teacher)  # sharded by the training
    measured = evaluate(trainer, data, student, teacher)
    scores = measured.scores
    student = _unsharded(trainer, data, folder, student, teacher)  # sharded by the evaluation
    device = trainer.strategy.root_device
    if request.times_answers:
        pairs = [("student", data, student)] if student is not None else []
        pairs += [("teacher", teacher.data, teacher.models[0])] if teacher else []
        for role, role_data, model in pairs:
            seconds = answer_seconds(role_data, model)
            scores[role] = {**(scores[role] or {}), "answer_seconds": seconds}
        return scores
    teacher_scores = score_teacher_answers(teacher, store, device) if teacher else {}
    if process_group.is_rank_zero():  # text is generated on one device
        generated = score_generation(request, data, student, teacher, device, teacher_scores)
        for role, more in generated.items():
            scores[role] = {**(scores[role] or {}), **more}
        if student is not None:
            predictions = {"reliability": measured.reliability}
            if teacher is not None:
                with moved_to(device, [student, teacher.models[0]]):
                    predictions["differences"] = token_differences(data, student, teacher)
            _write_json(folder / PREDICTIONS, predictions)
            samples = generate_samples(data, student, teacher, seed)
            _write_json(folder / SAMPLES, samples)
            if log_samples:
                log_samples(samples)
    process_group.barrier()
    return scores


def _write_json(file: Path, content: Any) -> None:
    write_atomic(file, json.dumps(content, indent=2, ensure_ascii=False).encode())


def _unsharded(
    trainer: L.Trainer,
    data: DistillationData,
    folder: Path,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
) -> PreTrainedModel | None:
    """The student, loaded again if it is sharded; a sharded teacher loads when next accessed."""
    if teacher and uses_fsdp(trainer):
        teacher.release()
    if isinstance(student, FSDPModule):
        full: PreTrainedModel = pretrained.load_saved(data.auto_class, folder / "student")
        return full
    return student


def generate_samples(
    data: DistillationData, student: PreTrainedModel, teacher: Teacher | None, seed: int
) -> list[dict[str, str]]:
    """The answers of student and teacher to a few test prompts; of an ensemble, its first model."""
    samples = []
    for number, prompt in enumerate(data.sample_prompts()):
        sample = {"prompt": prompt, "student": data.sample_answer(student, number, None, seed)}
        if teacher is not None:
            shown = None if teacher.data is data else prompt
            model = teacher.models[0]
            sample["teacher"] = teacher.data.sample_answer(model, number, shown, seed)
        samples.append(sample)
    return samples
