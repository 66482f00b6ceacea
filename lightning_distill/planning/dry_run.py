"""A dry run: the whole pipeline with a few steps of each part.

It is `pipeline.distill` itself, in a temporary folder, so that what is profiled is what will run.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_distill.config.settings import Settings
from lightning_distill.config.training_length import trained_for
from lightning_distill.pipeline import distill
from lightning_distill.planning.profile import (
    DRY_RUN_BATCHES,
    DRY_RUN_STEPS,
    DryRunProfile,
    summarize_profile,
)
from lightning_distill.run.builder import Run
from lightning_distill.storage.artifacts import Artifact, Store
from lightning_distill.sweeps.job import Job


def profile_dry_run(
    run: Run, job: Job, teachers: Sequence[Artifact], folder: Path
) -> DryRunProfile:
    """Runs the pipeline in a temporary folder below `folder`.

    teachers: all that the run needs, if they are trained; none if the dry run has to train them.
    """
    with TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        source, store = Store(run.outputs), Store(temporary / "outputs")
        for kind in ("tokenizer", "tokens"):
            _link(source.root / kind, store.root / kind)
        for teacher in teachers:
            _link(teacher.folder, store.root / "teacher" / teacher.key)
        records = temporary / "profile.jsonl"
        small = shrink_settings(run, store.root.parent, records, trains_teachers=not teachers)
        start = time.perf_counter()
        with quiet():
            results = distill(small, replace(job, folder=temporary / "run"))
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        return summarize_profile(run, lines, results, seconds, store.root, temporary / "run")


def shrink_settings(run: Run, outputs: Path, records: Path, trains_teachers: bool) -> Settings:
    """The same run with few steps, blocks and held-out batches, profiled into `records`."""
    small = deepcopy(run.settings)
    trainer, teacher = small["trainer"], small["teacher"]
    profiler = {
        "_target_": "lightning_distill.planning.step_profiler.StepProfiler",
        "file": str(records),
    }
    small["paths"]["outputs"] = str(outputs)
    small["logger"] = {}
    small["evaluate"].update(tasks=[], speed=False)
    small["checkpoint_every_n_steps"] = DRY_RUN_STEPS
    few = {"max_steps": DRY_RUN_STEPS, "epochs": None}
    small["student"] |= few
    for node in [teacher, *(teacher.get("members") or [])]:
        if trains_teachers and trained_for(node):
            node |= few
    batch_size, is_api = run.trainers.batch_size, run.teacher.is_api
    small["transfer"] |= run.make_transfer().dry_run_settings(batch_size, api_teacher=is_api)
    trainer.update(
        callbacks=[profiler, *(trainer.get("callbacks") or [])],
        val_check_interval=DRY_RUN_STEPS * run.trainers.accumulate_grad_batches,
        limit_val_batches=DRY_RUN_BATCHES,
        limit_test_batches=DRY_RUN_BATCHES,
    )
    return small


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source, target_is_directory=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the log lines of the pipeline, but not its warnings."""
    logger = logging.getLogger("lightning_distill")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
