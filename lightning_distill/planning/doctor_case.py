"""What the doctor looks at."""

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.losses.objective import Objective
from lightning_distill.models import pretrained
from lightning_distill.planning.plan import requirements
from lightning_distill.run.builder import Run, build_run
from lightning_distill.run.preparation import prepare_data
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job import Job
from lightning_distill.sweeps.resume import last_folder
from lightning_distill.training.teacher import Teacher, find_teacher
from lightning_distill.transfer.base import Transfer


class LeftOutError(Exception):
    """A check that there is nothing to make of; says why."""


class Case:
    """What the checks look at, each part made when the first of them asks for it."""

    def __init__(self, cfg: DictConfig, job: Job) -> None:
        self.cfg, self.job, self.store = cfg, job, Store(cfg.paths.outputs)

    @cached_property
    def run(self) -> Run:
        return build_run(self.cfg)

    @cached_property
    def both(self) -> tuple[DistillationData, DistillationData]:
        return prepare_data(self.run)

    @property
    def data(self) -> DistillationData:
        return self.both[0]

    @cached_property
    def objective(self) -> Objective:
        return self.run.make_objective()

    @cached_property
    def transfer(self) -> Transfer:
        return self.run.make_transfer()

    @cached_property
    def teacher(self) -> Teacher:
        if self.run.teacher.is_api:
            raise LeftOutError(
                "the teacher is behind a server, which tells nothing of held-out text"
            )
        found = find_teacher(self.run.teacher, self.run.trainers, self.store, self.both[1])
        if found is None:
            raise LeftOutError("the teacher is not there yet, stage=teacher trains it")
        return found

    @cached_property
    def student(self) -> tuple[str, PreTrainedModel]:
        """What this job begins with, or has led to."""
        folder = last_folder(Path(self.cfg.paths.outputs), self.job)
        if folder and (folder / "student").exists():
            return "its finished student", pretrained.load_saved(
                self.data.auto_class, folder / "student"
            )
        if self.run.student.pruning:
            raise LeftOutError("the student is a part of its teacher")
        L.seed_everything(self.run.seed, verbose=False)
        model = self.run.student.build(self.data)
        return "the student before training", model

    @cached_property
    def requirements(self) -> dict[str, Any]:
        """Of a run in small, as `stage=plan` makes it."""
        return requirements(self.cfg, self.job, self.cfg.student.max_steps)
