"""What the doctor's checks read, each part made when the first check asks for it."""

from functools import cached_property

import lightning as L
from transformers import PreTrainedModel

from lightning_distill.config.settings import Settings
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.experiment.builder import Run, build_run
from lightning_distill.experiment.preparation import prepare_data, tokenizers_of
from lightning_distill.models.tokenizers import Tokenizers
from lightning_distill.planning.dry_run import Prepared, size_of_dry_run
from lightning_distill.planning.dry_run_size import DryRunSize
from lightning_distill.planning.estimate import Estimate, estimate_job
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job import Job
from lightning_distill.training.teacher import Teacher, find_teacher


class SkippedError(Exception):
    """A check that cannot be made; the message says why."""


class Context:
    """A part that cannot be made raises its error in every check that needs it."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self._settings, self.job = settings, job

    @cached_property
    def run(self) -> Run:
        return build_run(self._settings)

    @cached_property
    def tokenizers(self) -> Tokenizers:
        return tokenizers_of(self.run)

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(*prepare_data(self.run, sample=True))

    @property
    def data(self) -> DistillationData:
        return self.prepared.data

    @property
    def teacher_data(self) -> DistillationData:
        return self.prepared.teacher_data

    @cached_property
    def dry_run_size(self) -> DryRunSize:
        return size_of_dry_run(self.run, self.data, self.teacher_data)

    @cached_property
    def teacher(self) -> Teacher:
        if self.run.teacher.is_api:
            raise SkippedError("the teacher is an API, which does not score held-out text")
        store = Store(self.run.outputs)
        teacher = find_teacher(self.run.teacher, self.run.trainers, store, self.teacher_data)
        if teacher is None:
            raise SkippedError("the teacher is not trained yet; stage=teacher trains it")
        return teacher

    @cached_property
    def student(self) -> PreTrainedModel:
        """As it is before training."""
        if self.run.student.pruning:
            raise SkippedError("the student is a part of the teacher")
        L.seed_everything(self.run.seed, verbose=False)
        return self.run.student.build(self.data)

    @property
    def estimate(self) -> Estimate:
        """Raises what the dry run raised, which is not repeated for each check."""
        if isinstance(self._estimate, Exception):
            raise self._estimate
        return self._estimate

    @cached_property
    def _estimate(self) -> Estimate | Exception:
        try:
            return estimate_job(self.run, self.job, prepared=self.prepared)
        except Exception as error:
            return error
