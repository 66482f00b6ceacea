"""Whether a teacher is worth learning from, before a student is trained on it."""

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
    """Warns if the teacher's validation nll is no better than uniform, or than the student's.

    The teacher's nll is an artifact, which the jobs of a sweep share. student: None where it is
    untrained.
    """

    def nll(
        role: str, models: list[Frozen], weights: list[float], examples: DistillationData
    ) -> float:
        trainer = make_trainer(f"{role} on {BATCHES} batches", limit_test_batches=BATCHES)
        evaluation = Evaluation({role: models}, weights, examples.quality_metric)
        trainer.test(evaluation, examples.val_dataloader(), verbose=False)
        if uses_fsdp(trainer):
            teacher.release()  # to be loaded again, unsharded
        return float(evaluation.scores[role]["nll"])

    def make(folder: Path) -> dict[str, Any]:
        return {"nll": nll("teacher", teacher.frozen(), teacher.weights, teacher.data)}

    made_from = {"teacher": teacher.hash, "tokens": teacher.data.artifact.key, "batches": BATCHES}
    made_from |= {"examples": teacher.data.example_settings | {"data.batch_size": data.batch_size}}
    artifact = store.get("teacher_check", made_from, make, on_all_ranks=True)
    teacher_nll, uniform = artifact.manifest["content"]["nll"], math.log(teacher.data.num_classes)
    if not teacher_nll < uniform:
        log.warning(
            "the teacher's validation nll is %.3f, no better than uniform (%.3f): it may be made "
            "for other data or for another tokenizer",
            *(teacher_nll, uniform),
        )
    elif student is not None and teacher.data is data:
        frozen = Frozen(copy.deepcopy(student), data.num_classes)
        student_nll = nll("student", [frozen], [1.0], data)
        if student_nll < teacher_nll:
            log.warning(
                "the student's validation nll before training is %.3f, the teacher's %.3f: there "
                "may be little to learn from it",
                *(student_nll, teacher_nll),
            )
