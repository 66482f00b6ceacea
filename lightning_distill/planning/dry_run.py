"""A dry run: the whole pipeline with a few steps of each part.

It is `pipeline.distill` itself, in a temporary folder, so that what is profiled is what will run.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_distill.config.settings import Settings
from lightning_distill.config.training_length import trained_for
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.experiment.builder import Run, build_run
from lightning_distill.experiment.preparation import check_parts, outline_student
from lightning_distill.models.inspection import count_parameters
from lightning_distill.models.pruning import INFLUENCE
from lightning_distill.pipeline import run_pipeline
from lightning_distill.planning.dry_run_size import DryRunSize, dry_run_size
from lightning_distill.planning.profile import DryRunProfile, summarize_profile
from lightning_distill.progress import hidden
from lightning_distill.storage.artifacts import Artifact, Store
from lightning_distill.sweeps.job import Job


@dataclass(frozen=True)
class Prepared:
    """The examples in the tokens of student and teacher; one object where they share them."""

    data: DistillationData
    teacher_data: DistillationData

    @contextmanager
    def limited(self, held_out: int) -> Iterator[None]:
        """So many examples of each held-out split."""
        both = (self.data, self.teacher_data)
        for data in both:
            data.held_out_limit = held_out
        try:
            yield
        finally:
            for data in both:
                data.held_out_limit = None
                data.set_train_examples(None, seed=0)


def size_of_dry_run(run: Run, data: DistillationData, teacher_data: DistillationData) -> DryRunSize:
    """By the larger of the two models, none of which is loaded for that."""
    models = [outline_student(run, data)]
    if not run.teacher.is_api:
        models += [member.model.outline(teacher_data) for member in run.teacher.members]
    tokens = run.trainers.examples_per_step * data.examples("validation").positions
    parameters = max(count_parameters(model) for model in models)
    return dry_run_size(parameters, tokens, run.trainers.batch_size)


def profile_dry_run(
    run: Run, job: Job, prepared: Prepared, teachers: Sequence[Artifact], folder: Path
) -> DryRunProfile:
    """Runs the pipeline in a temporary folder below `folder`.

    teachers: all that the run needs, if they are trained; none if the dry run has to train them.
    """
    size = size_of_dry_run(run, prepared.data, prepared.teacher_data)
    with TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        source, store = Store(run.outputs), Store(temporary / "outputs")
        _link(source.root / "gguf", store.root / "gguf")
        for teacher in teachers:
            _link(teacher.folder, store.root / "teacher" / teacher.key)
        records = temporary / "profile.jsonl"
        outputs = store.root.parent
        small = build_run(shrink_settings(run, outputs, records, not teachers, size))
        small = replace(small, evaluation=replace(small.evaluation, times_answers=True))
        check_parts(small)
        start, of_dry_run = time.perf_counter(), replace(job, folder=temporary / "run")
        with quiet(), prepared.limited(size.held_out):
            results = run_pipeline(small, of_dry_run, prepared.data, prepared.teacher_data)
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        return summarize_profile(
            *(run, size, prepared.data, lines, results, seconds, store.root, temporary / "run")
        )


def shrink_settings(
    run: Run, outputs: Path, records: Path, trains_teachers: bool, size: DryRunSize
) -> Settings:
    """The same run with few steps and examples, profiled into `records`."""
    small = deepcopy(run.settings)
    trainer, teacher = small["trainer"], small["teacher"]
    profiler = {
        "_target_": "lightning_distill.planning.step_profiler.StepProfiler",
        "file": str(records),
        "warmup": size.warmup,
    }
    small["paths"]["outputs"] = str(outputs)
    small["logger"] = {}
    small["evaluate"].update(tasks=[], speed=False)
    small["checkpoint_every_n_steps"] = size.steps
    few = {"max_steps": size.steps, "epochs": None}
    small["student"] |= few
    if small["student"].get("layers") == INFLUENCE:  # which takes a pass over a text
        small["student"]["layers"] = "uniform"  # as many, which cost the same
    for node in [teacher, *(teacher.get("members") or [])]:
        if trains_teachers and trained_for(node):
            node |= few
    is_api = run.teacher.is_api
    small["transfer"] |= run.make_transfer().dry_run_settings(size.batch_size, api_teacher=is_api)
    trainer.update(
        callbacks=[profiler, *(trainer.get("callbacks") or [])],
        val_check_interval=size.steps * run.trainers.accumulate_grad_batches,
    )
    return small


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source, target_is_directory=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the log lines and the progress bars of the pipeline, but not its warnings."""
    logger = logging.getLogger("lightning_distill")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with hidden():
            yield
    finally:
        logger.setLevel(level)
