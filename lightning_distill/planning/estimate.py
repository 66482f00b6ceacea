"""The cost of a job: its student, and the artifacts that it needs, which other jobs may share."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.experiment.builder import Run
from lightning_distill.experiment.preparation import prepare_data
from lightning_distill.planning.dry_run import Prepared, profile_dry_run
from lightning_distill.planning.profile import DryRunProfile
from lightning_distill.storage.artifacts import Artifact, Store, key_of
from lightning_distill.sweeps.job import Job
from lightning_distill.sweeps.job_key import effective_settings
from lightning_distill.training.cost import peak_memory_mb
from lightning_distill.training.teacher import Teacher, api_teacher, find_teacher, trained_teachers

log = logging.getLogger(__name__)

Estimate = dict[str, Any]  # seconds, flops, bytes, memory_mb, and what else the table shows

# Groups whose numbers do not change the cost, except that 0 can turn a part off.
TUNED = ("loss", "optimizer", "schedule")


def estimate_job(
    run: Run, job: Job, steps_done: int = 0, prepared: Prepared | None = None
) -> Estimate:
    """Of what is left after `steps_done` of the student; `shared` lists the artifacts' estimates.

    Raises what the dry run raises.
    """
    objective, transfer, store = run.make_objective(), run.make_transfer(), Store(run.outputs)
    prepared = prepared or Prepared(*prepare_data(run, sample=True))
    data, teacher_data = prepared.data, prepared.teacher_data
    teachers = trained_teachers(run.teacher, run.trainers, store, teacher_data)
    profile = _profile(run, job, prepared, teachers)
    needs_teacher = objective.needs_teacher or transfer.supervises_by_text
    shared = _answer_estimates(data)
    if needs_teacher or run.student.pruning:
        shared += _teacher_estimates(run, teacher_data, teachers, profile)
    units = transfer.units_to_prepare(data, teacher_data)
    if needs_teacher and units and transfer.prepares and profile.preparation:
        if teacher := _existing_teacher(run, store, teacher_data):
            made_from = transfer.made_from(data, teacher)
        else:  # a key that the jobs of this plan share
            settings = effective_settings(run.settings)["transfer"]
            made_from = {"teachers": list(teachers), **settings, "tokens": data.artifact.key}
        shared.append(
            {
                "what": transfer.prepares,
                "id": key_of(made_from),
                "there": store.find(transfer.prepares, made_from) is not None,
                "unit": transfer.unit_count_key.rpartition(".")[2].removeprefix("num_"),
                **profile.preparation.estimate(units, run.trainers),
            }
        )
    examples = range(transfer.expected_examples(data, teacher_data)) if run.student.epochs else None
    steps = run.student.steps(examples, run.trainers.examples_per_step)
    return {**_student_estimate(run, profile, data, steps, steps_done), "shared": shared}


def missing(estimate: Estimate) -> list[Estimate]:
    """The artifacts of that job that do not exist yet."""
    return [artifact for artifact in estimate["shared"] if not artifact["there"]]


def cost_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Equal for two jobs that cost the same, so that they share a dry run."""
    settings = effective_settings(deepcopy(settings))
    del settings["seed"]
    for key in ("max_steps", "epochs", "stop_after"):
        settings["student"].pop(key, None)
    for role in (settings, settings["teacher"]):
        role |= {group: _numbers_as_truth(role[group]) for group in TUNED if group in role}
    for key in ("max_steps", "epochs", "seed", "weights"):
        settings["teacher"][key] = _numbers_as_truth(settings["teacher"].get(key))
    return settings


def _numbers_as_truth(value: Any) -> Any:
    """The value with each number replaced by whether it is 0."""
    if isinstance(value, dict):
        return {key: _numbers_as_truth(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers_as_truth(one) for one in value]
    return bool(value) if isinstance(value, int | float) else value


def _profile(
    run: Run, job: Job, prepared: Prepared, teachers: dict[str, Artifact | None]
) -> DryRunProfile:
    """Of a dry run that the jobs of a sweep share where they cost the same."""
    trained = [teacher for teacher in teachers.values() if teacher]
    if len(trained) < len(teachers):
        trained = []  # the dry run trains all of them
    if not job.is_of_sweep:
        return profile_dry_run(run, job, prepared, trained, job.folder)

    def make(folder: Path) -> dict[str, Any]:
        log.info("%s: dry run", job.name)
        return asdict(profile_dry_run(run, job, prepared, trained, folder))

    settings = cost_settings(run.settings) | {"trained": bool(trained), "started": job.started}
    artifact = Store(job.folder.parent).get("dry_run", settings, make)
    return DryRunProfile.from_dict(artifact.manifest["content"])


def _student_estimate(
    run: Run, profile: DryRunProfile, data: DistillationData, steps: int, steps_done: int
) -> Estimate:
    trainers, left = run.trainers, steps - steps_done
    estimate = profile.student.estimate(left, trainers)
    examples = left * trainers.examples_per_step
    if steps >= trainers.checkpoint_every_n_steps:  # the last one is kept
        estimate["bytes"] += profile.checkpoint_bytes
    tokens = examples * data.examples("train").positions
    return {"parameters": profile.student_parameters, "tokens": tokens, **estimate}


def _teacher_estimates(
    run: Run,
    data: DistillationData,
    teachers: dict[str, Artifact | None],
    profile: DryRunProfile,
) -> Iterator[Estimate]:
    members = [member for member in run.teacher.members if member.is_trained]
    for index, (key, artifact) in enumerate(teachers.items()):
        parameters = (profile.teacher_parameters or 0) // len(teachers)
        entry = {"what": "teacher", "id": key, "there": artifact is not None, "unit": "steps"}
        model = members[index].model
        steps = model.steps(data.examples("train"), run.trainers.examples_per_step)
        costs = profile.teachers[index].estimate(steps, run.trainers) if profile.teachers else {}
        yield {**entry, "parameters": parameters, **costs}


def _answer_estimates(data: DistillationData) -> list[Estimate]:
    """Of the conversations that the teacher answers."""
    return [
        {
            "what": "conversations",
            "id": one.key,
            "there": not one.is_sample,
            "unit": "conversations",
            "count": one.total,
            "seconds": one.seconds,
            "flops": 0,  # as of other generated text
            "bytes": one.num_bytes,
            "memory_mb": peak_memory_mb(),
        }
        for one in data.answered
    ]


def _existing_teacher(run: Run, store: Store, data: DistillationData) -> Teacher | None:
    if run.teacher.is_api:
        return api_teacher(run.teacher, data)
    return find_teacher(run.teacher, run.trainers, store, data)
