"""The main job: teacher → transfer → distill, and what was gained.

A teacher is trained, or found among the artifacts. The transfer decides what of its predictions
the student sees. The student is trained on that, saved for other tools to load, and measured
against its teacher on text that neither has seen.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_distill import ConfigError, models
from lightning_distill.artifacts import Store
from lightning_distill.dashboard import finish_loggers, log_samples, progress, start_loggers
from lightning_distill.data import DataModule
from lightning_distill.evaluation import evaluate, write_samples
from lightning_distill.models import pretrained
from lightning_distill.results import RESULTS, Cost, Job, read_results, write_results
from lightning_distill.student import StudentModule
from lightning_distill.teacher import TeacherModule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    model: PreTrainedModel
    hash: str  # of its weights, or of all that they were made from
    seconds: float  # of training, now; 0 where it was there already


def distill(cfg: DictConfig, job: Job) -> dict[str, Any]:
    """Everything needed, in order. Returns what `results.json` holds."""
    # What can be wrong with the settings shows before anything is trained.
    objective, transfer = instantiate(cfg.loss), instantiate(cfg.transfer)
    store, data = Store(cfg.paths.outputs), prepare_data(cfg)
    objective.vocab_size = len(data.tokenizer)
    L.seed_everything(cfg.seed, verbose=False)
    student = models.build(cfg.student, data.tokenizer)

    if objective.needs_teacher:
        teacher = obtain_teacher(cfg, store, data, job)
    else:
        teacher = find_teacher(cfg, store, data)  # only to compare with

    cost = Cost(teacher_seconds=teacher.seconds if teacher else 0.0)
    write_results(job.folder, job.state("running"))
    loggers = start_loggers(cfg, "student", job.folder, job.name, job.group)
    module = StudentModule(
        student,
        teacher.model if teacher and objective.needs_teacher else None,
        objective,
        transfer,
        instantiate(cfg.optimizer),
        instantiate(cfg.schedule),
        teacher.hash if teacher and objective.needs_teacher else None,
    )
    with cost.measure(module):
        data.train_on(transfer.num_blocks, cfg.seed)
        fit(cfg, module, data, cfg.student.max_steps, job.folder, loggers, f"student {job.name}")

    save(module.model, data, job.folder / "student")
    scores = measure(cfg, data, job, module.model, teacher, loggers)
    results = job.results(cost, scores)
    write_results(job.folder, results)
    finish_loggers(loggers, results)
    return results


def teach(cfg: DictConfig, job: Job) -> dict[str, Any]:
    """`stage=teacher`: the first step alone."""
    data = prepare_data(cfg)
    teacher = obtain_teacher(cfg, Store(cfg.paths.outputs), data, job)
    scores = evaluate(make_trainer(cfg, job.folder, "teacher"), data, None, teacher.model)
    results = job.results(Cost(teacher_seconds=teacher.seconds), scores)
    write_results(job.folder, results)
    return results


def evaluate_again(cfg: DictConfig, job: Job) -> dict[str, Any]:
    """`stage=evaluate`: the student of a finished run, `evaluate.run=<its folder>`."""
    if cfg.evaluate.run is None:
        raise ConfigError("stage=evaluate needs evaluate.run=<the folder of a run>.")
    return evaluate_run(Path(cfg.evaluate.run), cfg.paths.outputs)


def evaluate_run(folder: Path, outputs: str) -> dict[str, Any]:
    """Measures a finished run's student, against its teacher if that exists by now.

    The run's results.json is brought up to date.
    """
    for needed in (".hydra/config.yaml", RESULTS, "student/model.safetensors"):
        if not (folder / needed).exists():
            raise ConfigError(f"evaluate.run={folder} is not a finished run: it has no {needed}.")
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.paths.outputs = outputs
    results = read_results(folder)
    data = prepare_data(cfg)
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    teacher = find_teacher(cfg, Store(outputs), data)
    job = Job.of(cfg, folder, folder.name, "", results["overrides"])
    results |= measure(cfg, data, job, student, teacher)
    write_results(folder, results)
    return results


def prepare_data(cfg: DictConfig) -> DataModule:
    data: DataModule = instantiate(cfg.data)
    tokenizer = models.shared_tokenizer(cfg.teacher, cfg.student)
    data.prepare(Store(cfg.paths.outputs), tokenizer)
    log.info("%s", data.describe())
    return data


def obtain_teacher(cfg: DictConfig, store: Store, data: DataModule, job: Job) -> Teacher:
    """Loads the teacher; trains it first, once for all who ask for the same one."""
    if not cfg.teacher.max_steps:
        return as_it_is(cfg, data)
    made_from = teacher_made_from(cfg, data)

    def make(folder: Path) -> None:
        log.info("training the teacher: %s steps", cfg.teacher.max_steps)
        L.seed_everything(cfg.teacher.seed, verbose=False)
        module = TeacherModule(
            models.build(cfg.teacher, data.tokenizer),
            len(data.tokenizer),
            instantiate(cfg.teacher.optimizer),
            instantiate(cfg.teacher.schedule),
        )
        logs = job.folder / "teacher"
        loggers = start_loggers(cfg, "teacher", logs, f"teacher {folder.stem}", job.group)
        data.train_on(None, cfg.teacher.seed)
        fit(cfg, module, data, cfg.teacher.max_steps, folder, loggers, "teacher")
        finish_loggers(loggers, {"parameters": models.count_parameters(module.model)})
        save(module.model, data, folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the weights are saved
        if (logs / "metrics.csv").exists():
            shutil.copy(logs / "metrics.csv", folder)

    artifact = store.get("teacher", made_from, make)
    log.info("teacher: %s%s", artifact.folder, "" if artifact.seconds else " (reused)")
    model = AutoModelForCausalLM.from_pretrained(artifact.folder)
    return Teacher(model, artifact.key, artifact.seconds)


def find_teacher(cfg: DictConfig, store: Store, data: DataModule) -> Teacher | None:
    """The teacher where it is there already; nothing is trained."""
    if not cfg.teacher.max_steps:
        return as_it_is(cfg, data)
    artifact = store.find("teacher", teacher_made_from(cfg, data))
    if artifact is None:
        return None
    return Teacher(AutoModelForCausalLM.from_pretrained(artifact.folder), artifact.key, 0.0)


def as_it_is(cfg: DictConfig, data: DataModule) -> Teacher:
    """A pretrained teacher that is not trained further."""
    if "name" not in cfg.teacher:
        raise ConfigError("teacher.max_steps=0 leaves the teacher untrained; set at least 1.")
    weights = pretrained.fingerprint(cfg.teacher.name, cfg.teacher.revision)
    return Teacher(models.build(cfg.teacher, data.tokenizer), weights, 0.0)


def teacher_made_from(cfg: DictConfig, data: DataModule) -> dict[str, Any]:
    """Everything that decides what the trained teacher will be, and nothing else."""
    node = OmegaConf.to_container(cfg.teacher, resolve=True)
    assert isinstance(node, dict)
    if "name" in node:
        node["name"] = pretrained.fingerprint(node["name"], node["revision"])
    return {
        "teacher": node,
        "tokens": data.artifact.key,
        "blocks": [data.sequence_length, data.batch_size, data.isolate_documents],
        "trainer": {k: cfg.trainer[k] for k in ("precision", *NUMERIC) if k in cfg.trainer},
    }


NUMERIC = ("accumulate_grad_batches", "gradient_clip_val")


def fit(
    cfg: DictConfig,
    module: L.LightningModule,
    data: DataModule,
    max_steps: int,
    folder: Path,
    loggers: list[Logger],
    role: str,
) -> None:
    """Trains, from the folder's last checkpoint if an interrupted run left one."""
    last = folder / "checkpoints" / "last.ckpt"
    checkpoints = ModelCheckpoint(
        last.parent,
        filename="last",
        every_n_train_steps=cfg.checkpoint_every_n_steps,
        enable_version_counter=False,
    )
    trainer = make_trainer(cfg, folder, role, loggers, [checkpoints], max_steps=max_steps)
    if last.exists():
        log.info("%s: going on from %s", role, last)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt


def make_trainer(
    cfg: DictConfig,
    folder: Path,
    role: str,
    loggers: list[Logger] | None = None,
    callbacks: list[Any] | None = None,
    **settings: Any,
) -> L.Trainer:
    bar = progress(role)
    return instantiate(
        cfg.trainer,
        logger=loggers or False,
        callbacks=[*(callbacks or []), *bar],
        enable_progress_bar=bool(bar),
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        default_root_dir=str(folder),
        **settings,
    )


def save(model: PreTrainedModel, data: DataModule, folder: Path) -> None:
    """A folder that `from_pretrained` loads, without this package."""
    model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)


def measure(
    cfg: DictConfig,
    data: DataModule,
    job: Job,
    student: PreTrainedModel,
    teacher: Teacher | None,
    loggers: list[Logger] | None = None,
) -> dict[str, Any]:
    """Scores on the test split, and samples to read, in the log and in samples.json."""
    big = teacher.model if teacher else None
    scores = evaluate(make_trainer(cfg, job.folder, "student"), data, student, big)
    samples = write_samples(data, student, big, cfg.seed)
    (job.folder / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False))
    log_samples(loggers or [], samples)
    for sample in samples:
        log.info("%s", "\n".join(f"{who:>8}: {text!r}" for who, text in sample.items()))
    return scores
