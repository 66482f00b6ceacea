"""The main job: teacher → transfer → student → evaluation.

A teacher is trained, or found among the artifacts. The transfer decides what of its predictions the
student sees. The student is trained on that, saved as a Hugging Face folder, and scored beside its
teacher on held-out text.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedModel

from lightning_distill.config import allowlist
from lightning_distill.config.settings import Settings
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.distributed.machine import environment
from lightning_distill.evaluation.evaluate import evaluate_all
from lightning_distill.evaluation.teacher_check import check_teacher_quality
from lightning_distill.experiment.builder import Run, build_run
from lightning_distill.experiment.preparation import (
    check_intermediate_losses,
    check_parts,
    outline_student,
    prepare_data,
)
from lightning_distill.losses.objective import Objective
from lightning_distill.models import lora
from lightning_distill.models.pruning import prune_teacher
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job import Job, write_results
from lightning_distill.tracking.loggers import Tracker, log_samples
from lightning_distill.training.cost import Cost
from lightning_distill.training.fit import fit, save_trained
from lightning_distill.training.nonfinite_guard import SKIPPED
from lightning_distill.training.student import StudentModule
from lightning_distill.training.teacher import Teacher, find_teacher, obtain_teacher
from lightning_distill.transfer.base import Transfer, Workspace
from lightning_distill.transfer.generated import GENERATED

log = logging.getLogger(__name__)


def distill(settings: Settings, job: Job) -> dict[str, Any]:
    """`stage=distill`: every step that is not done yet. Returns the content of results.json."""
    allowlist.check_imports(settings)
    run = build_run(settings)
    check_parts(run)
    return run_pipeline(run, job, *prepare_data(run))


def run_pipeline(
    run: Run, job: Job, data: DistillationData, teacher_data: DistillationData
) -> dict[str, Any]:
    """All that follows the data, in the tokens of student and teacher."""
    objective, transfer, store = run.make_objective(), run.make_transfer(), Store(run.outputs)
    check_intermediate_losses(run, data, teacher_data)
    L.seed_everything(run.seed, verbose=False)
    pruning = run.student.pruning
    student = outline_student(run, data) if pruning else run.student.build(data)
    lora.check(student, run.student.lora, "student")
    transfer.check(objective, data, teacher_data)

    needs_teacher = objective.needs_teacher or transfer.supervises_by_text
    teacher = _teacher(run, job, store, teacher_data, needs_teacher or bool(pruning))
    if teacher and pruning:
        batches = data.loader(data.train_examples(), data.batch_size)
        student = prune_teacher(teacher.models[0], pruning, batches)
    lora.attach(student, run.student.lora, "student", run.seed, bool(data.new_tokens))
    make_trainer = partial(run.trainers.trainer, job.folder)
    if teacher and needs_teacher and not teacher.api:
        pretrained = student if pruning or run.student.source else None
        check_teacher_quality(teacher, pretrained, data, store, make_trainer)

    start_results(job)
    cost = Cost(teacher_seconds=teacher.seconds if teacher else 0.0)
    tracker = _tracker(run, job)
    loggers = tracker.start(job.folder, job.folder / "checkpoints")
    source = teacher if needs_teacher else None
    if source:
        cost.transfer_seconds = transfer.prepare(
            data, source, Workspace(store, job.folder, make_trainer)
        )
    if teacher and not (transfer.holds_teacher and objective.needs_teacher):
        teacher.release()
    L.seed_everything(run.seed, verbose=False)  # independent of what was made above
    module = make_student_module(run, student, data, source, objective, transfer)
    with cost.measure(module):
        examples = transfer.dataset(data)
        data.set_train_examples(examples, run.seed)
        steps = run.student.steps(examples, run.trainers.examples_per_step)
        training = fit(
            *(run.trainers, module, data, steps, job.folder, loggers, "student", run.selection)
        )

    trainable = lora.count_trainable(module.model)
    lora.merge(module.model)
    save_trained(module.model, data, job.folder / "student")
    scores = _evaluate(run, job.folder, data, module.model, teacher, partial(log_samples, loggers))
    if run.student.lora:
        scores["student"]["trainable_parameters"] = trainable
    made_with = {"examples": data.describe(), "environment": environment()}
    results = job.final_results(cost, scores, training=asdict(training), **made_with)
    write_results(job.folder, results)
    tracker.finish(loggers, results)
    return results


def train_teacher(settings: Settings, job: Job) -> dict[str, Any]:
    """`stage=teacher`: the first step alone."""
    allowlist.check_imports(settings)
    run = build_run(settings)
    check_parts(run, student=False)
    _, data = prepare_data(run)
    teacher = _obtain_teacher(run, job, Store(run.outputs), data)
    scores = _evaluate(run, job.folder, data, None, teacher)
    results = job.final_results(Cost(teacher_seconds=teacher.seconds), scores)
    write_results(job.folder, results)
    return results


def run_transfer(settings: Settings, job: Job) -> dict[str, Any]:
    """`stage=transfer`: the first two steps, whose artifacts students share."""
    allowlist.check_imports(settings)
    run = build_run(settings)
    check_parts(run, student=False)
    transfer, store = run.make_transfer(), Store(run.outputs)
    data, teacher_data = prepare_data(run)
    transfer.check(run.make_objective(), data, teacher_data)
    teacher = _obtain_teacher(run, job, store, teacher_data)
    make_trainer = partial(run.trainers.trainer, job.folder)
    seconds = transfer.prepare(data, teacher, Workspace(store, job.folder, make_trainer))
    scores = _evaluate(run, job.folder, data, None, teacher)
    results = job.final_results(Cost(teacher.seconds, seconds), scores)
    write_results(job.folder, results)
    return results


def _teacher(
    run: Run, job: Job, store: Store, data: DistillationData, needed: bool
) -> Teacher | None:
    """The teacher; one that is not needed is only compared with, if it exists."""
    if needed:
        return _obtain_teacher(run, job, store, data)
    return find_teacher(run.teacher, run.trainers, store, data)


def _obtain_teacher(run: Run, job: Job, store: Store, data: DistillationData) -> Teacher:
    logs = job.folder / "teacher"
    if run.teacher.is_api:
        temperature = run.make_objective().weights.schedules["temperature"]
        if temperature.ends != (1.0, 1.0):
            log.warning(
                "loss.temperature=%s: an API teacher returns its top k; at temperatures other than "
                "1 the rest is spread evenly over the other tokens, which is biased",
                temperature,
            )
    return obtain_teacher(run.teacher, run.trainers, store, data, _tracker(run, job), logs)


def _tracker(run: Run, job: Job) -> Tracker:
    return Tracker(run.loggers, job, run.settings)


def make_student_module(
    run: Run,
    student: PreTrainedModel,
    data: DistillationData,
    teacher: Teacher | None,
    objective: Objective,
    transfer: Transfer,
) -> StudentModule:
    """teacher: the one that the student learns from, if any."""
    holds_teacher = teacher and transfer.holds_teacher and objective.needs_teacher
    return StudentModule(
        student,
        teacher.frozen(objective.fused) if teacher and holds_teacher else None,
        objective,
        transfer,
        run.optimizer,
        run.schedule,
        data.num_classes,
        teacher.hash if teacher else None,
        shifted_labels=True,
    )


def start_results(job: Job) -> None:
    """Marks the job as running. Unless it resumes, what an earlier job left here is removed."""
    if process_group.is_rank_zero() and not job.was_interrupted():
        for name in ("checkpoints", "student"):  # files of other jobs may be hard links to these
            shutil.rmtree(job.folder / name, ignore_errors=True)
        for name in (GENERATED, SKIPPED):
            (job.folder / name).unlink(missing_ok=True)
    write_results(job.folder, job.results("running"))
    process_group.barrier()


def _evaluate(
    run: Run,
    folder: Path,
    data: DistillationData,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
    log_samples: Callable[[list[dict[str, str]]], None] | None = None,
) -> dict[str, Any]:
    return evaluate_all(
        *(run.evaluation, run.trainers, data, folder, student, teacher, run.seed),
        *(Store(run.outputs), log_samples),
    )
