"""`stage=chat`: talk to the student of a finished run."""

import logging
from pathlib import Path

import torch

from lightning_distill.chat.speakers import ChatSettings, Speaker, speaker
from lightning_distill.chat.terminal import converse
from lightning_distill.config.settings import Settings
from lightning_distill.errors import ConfigError
from lightning_distill.experiment.builder import build_run
from lightning_distill.experiment.finished_run import FinishedRun, read_run
from lightning_distill.experiment.preparation import prepare_data
from lightning_distill.models.generation import Sampling
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job import Job
from lightning_distill.training.teacher import Teacher, find_teacher


def chat(settings: Settings, job: Job) -> None:
    """`stage=chat chat.run=<folder>`.

    Raises ConfigError before the first question if the run is unsuitable, or if its teacher is
    asked for and cannot answer.
    """
    node = settings["chat"]
    logging.getLogger().setLevel(logging.WARNING)  # what is printed is the conversation
    run = read_run("chat.run", Path(node["run"]), settings)
    if not run.task.is_generative:
        raise ConfigError(
            f"chat.run={run.folder}: its student is a {run.task.model_kind}, and generates no text."
        )
    sampling = Sampling(node["temperature"])
    answers = ChatSettings(node["system"], sampling, node["max_new_tokens"], settings["seed"])
    teacher = _teacher(run) if node["compare"] else None
    converse(_speakers(run, teacher, answers, _device(settings["trainer"]["accelerator"])))


def _speakers(
    run: FinishedRun, teacher: Teacher | None, settings: ChatSettings, device: torch.device
) -> list[Speaker]:
    """The student and, if there is one, the teacher; of an ensemble its first model."""
    models = {"student": (run.load_student(), run.load_tokenizer())}
    if teacher is not None:
        models["teacher"] = teacher.models[0].eval(), teacher.data.tokenizer
    return [
        speaker(role, model.to(device), tokenizer, settings)  # type: ignore[arg-type]
        for role, (model, tokenizer) in models.items()
    ]


def _teacher(run: FinishedRun) -> Teacher:
    objects = build_run(run.settings)
    if objects.teacher.is_api:
        raise ConfigError(
            f"chat.compare=true: the teacher of {run.folder} is behind an API, and not asked here."
        )
    _, data = prepare_data(objects)
    teacher = find_teacher(objects.teacher, objects.trainers, Store(objects.outputs), data)
    if teacher is None:
        raise ConfigError(
            f"chat.compare=true: the teacher of {run.folder} is not in "
            f"{objects.outputs}/artifacts. Run the command of the run again, or set paths.outputs."
        )
    return teacher


def _device(accelerator: str) -> torch.device:
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(True)
    return found or torch.device("cpu")
