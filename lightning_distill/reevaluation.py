"""`stage=evaluate`: finished students, measured again."""

import logging
from pathlib import Path
from typing import Any

from lightning_distill.config.settings import Settings
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.evaluate import evaluate_all
from lightning_distill.experiment.builder import build_run
from lightning_distill.experiment.preparation import prepare_data
from lightning_distill.experiment.settings import finished_run
from lightning_distill.models import pretrained
from lightning_distill.report.summarize import summarize
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job import RESULTS, Job, results_in, write_results
from lightning_distill.sweeps.records import job_folders
from lightning_distill.training.teacher import find_teacher

log = logging.getLogger(__name__)


def evaluate_again(settings: Settings, job: Job) -> dict[str, Any] | None:
    """The student of the finished run `evaluate.run`, or those of all finished jobs of a sweep."""
    evaluate, trainer = settings["evaluate"], settings["trainer"]
    folder = Path(str(evaluate["run"]))
    jobs = [] if (folder / RESULTS).exists() else job_folders(folder)
    finished = [job for job in jobs if results_in(job).get("status") == "finished"]
    if not finished:
        return evaluate_run(folder, settings["paths"]["outputs"], evaluate, trainer)
    if unfinished := len(jobs) - len(finished):
        log.info("evaluate.run: %s of %s jobs are unfinished and skipped", unfinished, len(jobs))
    for one in finished:
        log.info("evaluating %s", shown(one))
        evaluate_run(one, settings["paths"]["outputs"], evaluate, trainer)
    if process_group.is_rank_zero():
        summarize(folder)
    return None


def evaluate_run(
    folder: Path,
    outputs: str,
    evaluate: Settings | None = None,
    trainer: Settings | None = None,
) -> dict[str, Any]:
    """Evaluates a finished run's student, and its teacher where that exists, and updates
    results.json; scores that are not measured again stay.

    outputs, evaluate, trainer: see `finished_run`.
    """
    settings, results = finished_run("evaluate.run", folder, outputs, evaluate, trainer)
    run = build_run(settings)
    data, teacher_data = prepare_data(run)
    weights = folder / "student"  # missing after stage=teacher
    student = None
    if weights.exists():
        student = pretrained.load_saved(data.auto_class, weights, "evaluate.run")
    store = Store(outputs)
    teacher = find_teacher(run.teacher, run.trainers, store, teacher_data)
    if student is None and teacher is None:
        raise ConfigError(f"evaluate.run={folder} has no student, and its teacher does not exist.")
    scores = evaluate_all(
        *(run.evaluation, run.trainers, data, folder, student, teacher, run.seed, store)
    )
    for role, role_scores in scores.items():
        if role_scores:  # the scores of a teacher that was removed stay
            previous = results.get(role) or {}
            tasks = {**previous.get("tasks", {}), **role_scores.get("tasks", {})}
            results[role] = previous | role_scores | ({"tasks": tasks} if tasks else {})
    write_results(folder, results)
    return results
