"""The main job: teacher → transfer → distill, and what was gained.

A teacher is trained, or found among the artifacts. The transfer decides what of its predictions
the student sees. The student is trained on that, saved for other tools to load, and measured
against its teacher on text that neither has seen.
"""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PreTrainedModel

from lightning_distill.config import allowlist
from lightning_distill.config.validation import each_teacher
from lightning_distill.data.tasks.base import DistillationData, task_class
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.evaluate import (
    check_requested,
    check_teacher_quality,
    evaluate_all,
)
from lightning_distill.models import lora, pretrained
from lightning_distill.models.build import build_model, load_tokenizers, outline_model
from lightning_distill.models.pruning import prune_teacher
from lightning_distill.run import finished_run, hardware, plain_settings
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job import RESULTS, Job, results_in, write_results
from lightning_distill.sweeps.job_key import HARDWARE
from lightning_distill.sweeps.records import job_folders
from lightning_distill.tracking.loggers import Tracker, log_samples
from lightning_distill.training.cost import Cost
from lightning_distill.training.fit import fit, make_trainer, save_trained
from lightning_distill.training.nonfinite_guard import SKIPPED
from lightning_distill.training.optimizers import check_optimizers
from lightning_distill.training.student import StudentModule
from lightning_distill.training.teacher import Teacher, find_teacher, obtain_teacher
from lightning_distill.transfer.generated import GENERATED

log = logging.getLogger(__name__)


def distill(cfg: DictConfig, job: Job) -> dict[str, Any]:
    """Everything needed, in order. Returns what `results.json` holds."""
    allowlist.find(cfg)
    # What can be wrong with the settings shows before anything is trained.
    objective, transfer = instantiate(cfg.loss), instantiate(cfg.transfer)
    check_optimizers(cfg)
    store, tracker = Store(cfg.paths.outputs), Tracker(cfg, job)
    data, teacher_data = prepare_data(cfg)
    check_inside(cfg, data, teacher_data)
    L.seed_everything(cfg.seed, verbose=False)
    copied = cfg.student.initialize == "teacher_layers"
    student = outline_student(cfg, data) if copied else build_model(cfg.student, data)
    lora.check(student, cfg.student, "student")
    transfer.check(objective, data, teacher_data, len(each_teacher(cfg)))

    teacher: Teacher | None
    asked = objective.needs_teacher or transfer.supervises_by_text
    if asked or copied:
        teacher = obtain_teacher(cfg, store, teacher_data, tracker, job.folder)
    else:
        teacher = find_teacher(cfg, store, teacher_data)  # not trained for this, but compared with
    if teacher and copied:
        batches = data.loader(data.examples("train"), data.batch_size)
        student = prune_teacher(teacher.models[0], cfg.student, batches)
    lora.attach(student, cfg.student, "student", cfg.seed)

    if teacher and asked and not teacher.served:
        knows = student if copied or "name" in cfg.student else None
        check_teacher_quality(teacher, knows, data, store, trainer_for(cfg, job))

    if process_group.is_rank_zero() and not job.was_interrupted():
        for old in ("checkpoints", "student"):  # which another job's may be linked to
            shutil.rmtree(job.folder / old, ignore_errors=True)
        for name in (GENERATED, SKIPPED):
            (job.folder / name).unlink(missing_ok=True)
    write_results(job.folder, job.results("running"))
    process_group.barrier()
    cost = Cost(teacher_seconds=teacher.seconds if teacher else 0.0)
    checkpoints = job.folder / "checkpoints"
    loggers = tracker.start(job.folder, checkpoints)
    needed = teacher if asked else None
    if needed:
        objective.teacher_weights = needed.weights
        trainer = trainer_for(cfg, job)
        cost.transfer_seconds = transfer.prepare(data, needed, store, trainer, job.folder)
    holds = transfer.holds_teacher and objective.needs_teacher
    if teacher and not holds:
        teacher.release()
    L.seed_everything(cfg.seed, verbose=False)  # whatever was trained above, or was there already
    module = StudentModule(
        student,
        data.num_classes,
        needed.frozen(objective.fused) if needed and holds else [],
        objective,
        transfer,
        instantiate(cfg.optimizer),
        instantiate(cfg.schedule),
        needed.hash if needed else None,
    )
    with cost.measure(module):
        data.set_train_examples(transfer.dataset(data), cfg.seed)
        fit(cfg, module, data, cfg.student.max_steps, job.folder, loggers, "student")

    trained = lora.trainable(module.model)
    lora.merge(module.model)
    save_trained(module.model, data, job.folder / "student")
    show = partial(log_samples, loggers)
    scores = evaluate_all(cfg, data, job.folder, module.model, teacher, show)
    if lora.wanted(cfg.student):
        scores["student"]["trainable_parameters"] = trained
    results = job.final_results(cost, scores)
    write_results(job.folder, results)
    tracker.finish(loggers, results)
    return results


def train_teacher(cfg: DictConfig, job: Job) -> dict[str, Any]:
    """`stage=teacher`: the first step alone."""
    allowlist.find(cfg)
    check_optimizers(cfg, student=False)
    _, data = prepare_data(cfg)
    teacher = obtain_teacher(cfg, Store(cfg.paths.outputs), data, Tracker(cfg, job), job.folder)
    scores = evaluate_all(cfg, data, job.folder, None, teacher)
    results = job.final_results(Cost(teacher_seconds=teacher.seconds), scores)
    write_results(job.folder, results)
    return results


def run_transfer(cfg: DictConfig, job: Job) -> dict[str, Any]:
    """`stage=transfer`: the first two steps, which students then share."""
    allowlist.find(cfg)
    transfer, store = instantiate(cfg.transfer), Store(cfg.paths.outputs)
    check_optimizers(cfg, student=False)
    data, teacher_data = prepare_data(cfg)
    transfer.check(instantiate(cfg.loss), data, teacher_data, len(each_teacher(cfg)))
    teacher = obtain_teacher(cfg, store, teacher_data, Tracker(cfg, job), job.folder)
    seconds = transfer.prepare(data, teacher, store, trainer_for(cfg, job), job.folder)
    scores = evaluate_all(cfg, data, job.folder, None, teacher)
    results = job.final_results(Cost(teacher.seconds, seconds), scores)
    write_results(job.folder, results)
    return results


def evaluate_again(cfg: DictConfig, job: Job) -> dict[str, Any] | None:
    """`stage=evaluate`: the student of a finished run, `evaluate.run=<its folder>`; or, where that
    is a sweep's, those of all its finished jobs, and the sweep's summary anew."""
    if cfg.evaluate.run in (None, ""):
        raise ConfigError("stage=evaluate needs evaluate.run=<the folder of a run or a sweep>.")
    folder = Path(str(cfg.evaluate.run))
    jobs = [] if (folder / RESULTS).exists() else job_folders(folder)
    finished = [one for one in jobs if results_in(one).get("status") == "finished"]
    if not finished:
        return evaluate_run(folder, cfg.paths.outputs, cfg.evaluate, cfg.trainer)
    from lightning_distill.report.summarize import summarize  # plotly is slow

    if left := len(jobs) - len(finished):
        log.info("evaluate.run: %s of %s jobs are not finished and left out", left, len(jobs))
    for one in finished:
        log.info("evaluating %s", one)
        evaluate_run(one, cfg.paths.outputs, cfg.evaluate, cfg.trainer)
    if process_group.is_rank_zero():
        summarize(folder)
    return None


def evaluate_run(
    folder: Path,
    outputs: str,
    asked: DictConfig | None = None,
    trainer: DictConfig | None = None,
) -> dict[str, Any]:
    """Measures a finished run's student, against its teacher if that exists by now.

    asked: the tasks and the speed to measure besides; those that the run itself asked for if None.
    trainer: a node of settings that says where; the run's own if None.
    The run's results.json is brought up to date, and keeps what is not measured again.
    """
    cfg, results = finished_run("evaluate.run", folder)
    cfg.paths.outputs = outputs
    if asked is not None:
        cfg.evaluate = asked
    if trainer is not None:
        for key in HARDWARE:
            cfg.trainer[key] = trainer[key]
    allowlist.check(cfg, f"evaluate.run={folder}: ")
    data, teacher_data = prepare_data(cfg)
    weights = folder / "student"  # none after stage=teacher
    student = None
    if weights.exists():
        student = pretrained.saved(data.auto_class, weights, "evaluate.run")
    teacher = find_teacher(cfg, Store(outputs), teacher_data)
    if student is None and teacher is None:
        raise ConfigError(f"evaluate.run={folder} has no student, and its teacher is not here.")
    for role, scores in evaluate_all(cfg, data, folder, student, teacher).items():
        if scores:  # a teacher that is gone takes nothing of what is known along
            known = results.get(role) or {}
            tasks = {**known.get("tasks", {}), **scores.get("tasks", {})}
            results[role] = known | scores | ({"tasks": tasks} if tasks else {})
    write_results(folder, results)
    return results


def prepare_data(cfg: DictConfig) -> tuple[DistillationData, DistillationData]:
    """The examples in the student's tokens and in the teacher's: the same where they share them."""
    task = task_class(cfg.data._target_)
    check_requested(cfg.evaluate, task)
    theirs, own = None, None
    if task.has_tokenizer:
        shared = cfg.loss.get("shared_vocabulary", True)
        nodes = [one.teacher for one in each_teacher(cfg)]
        theirs, own = load_tokenizers(nodes, cfg.student, shared, task.shares_tokenizer)
    found = []
    for tokenizer in [own] if own is theirs else [own, theirs]:
        data: DistillationData = instantiate(cfg.data)
        data.prepare(Store(cfg.paths.outputs), tokenizer)
        log.info("%s", data.describe())
        found.append(data)
    return found[0], found[-1]


def trainer_for(cfg: DictConfig, job: Job) -> Callable[..., L.Trainer]:
    """What drives the teacher over the transfer set: each device takes shards of its own."""
    return partial(make_trainer, cfg, job.folder)


def check_inside(cfg: DictConfig, data: DistillationData, teacher_data: DistillationData) -> None:
    """Raises ConfigError where a term inside the network does not fit these two models."""
    for name, term in instantiate(cfg.loss).intermediate.items():
        if teacher_data is not data:
            raise ConfigError(
                f"loss.{name}.weight={term.weight:g} compares the models token by token, and "
                f"their tokenizers differ. Set loss.{name}.weight=0."
            )
        teacher = outline_model(each_teacher(cfg)[0].teacher, data)
        term.attach(outline_student(cfg, data), teacher)
        if hardware(plain_settings(cfg)).uses_fsdp and list(term.parameters()):
            raise ConfigError(
                f"loss.{name}.weight={term.weight:g} between models of different widths learns "
                "matrices of its own, which trainer=fsdp does not share. Set trainer=ddp."
            )


def outline_student(cfg: DictConfig, data: DistillationData) -> PreTrainedModel:
    """Without its weights. Raises ConfigError where it cannot be a part of its teacher."""
    if cfg.student.initialize == "random":
        return outline_model(cfg.student, data)
    teacher = outline_model(each_teacher(cfg)[0].teacher, data)
    return prune_teacher(teacher, cfg.student, [])
