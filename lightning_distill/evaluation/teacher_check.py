"""Warnings about a teacher that is not worth learning from, before a student is trained on it."""

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed.fsdp import uses_fsdp
from lightning_distill.evaluation.test_split import Evaluation
from lightning_distill.models.frozen import Frozen
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.teacher import Teacher

log = logging.getLogger(__name__)

BATCHES = 2  # of the validation split


def check_teacher_quality(
    teacher: Teacher,
    student: PreTrainedModel | None,
    data: DistillationData,
    store: Store,
    make_trainer: Callable[..., L.Trainer],
) -> None:
    """Warns if the teacher's validation NLL is no better than uniform, or than the student's.

    student: None where its weights are random.
    """
    teacher_nll = _teacher_nll(teacher, data.batch_size, store, make_trainer)
    uniform = math.log(teacher.data.num_classes)
    if not teacher_nll < uniform:
        log.warning(
            "the teacher's validation nll is %.3f, no better than uniform (%.3f): it may be made "
            "for other data or for another tokenizer",
            *(teacher_nll, uniform),
        )
    elif student is not None and teacher.data is data:
        frozen = Frozen(copy.deepcopy(student), data.num_classes)
        trainer = _short_trainer(make_trainer, "student")
        student_nll = _validation_nll(trainer, "student", [frozen], [1.0], data)
        if student_nll < teacher_nll:
            log.warning(
                "the student's validation nll before training is %.3f, the teacher's %.3f: there "
                "may be little to learn from it",
                *(student_nll, teacher_nll),
            )


def _teacher_nll(
    teacher: Teacher, batch_size: int, store: Store, make_trainer: Callable[..., L.Trainer]
) -> float:
    """An artifact, which the jobs of a sweep share."""

    def make(folder: Path) -> dict[str, Any]:
        trainer = _short_trainer(make_trainer, "teacher")
        models, data = teacher.frozen(), teacher.data
        nll = _validation_nll(trainer, "teacher", models, teacher.weights, data)
        if uses_fsdp(trainer):
            teacher.release()  # later loaded again, unsharded
        return {"nll": nll}

    made_from = {
        "teacher": teacher.hash,
        "tokens": teacher.data.artifact.key,
        "batches": BATCHES,
        "examples": teacher.data.example_settings | {"data.batch_size": batch_size},
    }
    artifact = store.get("teacher_check", made_from, make, on_all_ranks=True)
    return float(artifact.manifest["content"]["nll"])


def _short_trainer(make_trainer: Callable[..., L.Trainer], role: str) -> L.Trainer:
    return make_trainer(f"{role} on {BATCHES} batches", limit_test_batches=BATCHES)


def _validation_nll(
    trainer: L.Trainer,
    role: str,
    models: list[Frozen],
    weights: list[float],
    data: DistillationData,
) -> float:
    """Nats per prediction."""
    evaluation = Evaluation({role: models}, weights, data.quality_metric)
    trainer.test(evaluation, data.val_dataloader(), verbose=False)
    return float(evaluation.scores[role]["nll"])
