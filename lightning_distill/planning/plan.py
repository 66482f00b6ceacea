"""What a sweep will take, before it is run: `stage=plan`.

Each job notes in its own folder what it needs; the end of the sweep adds that up, what jobs share
once. Jobs that differ in nothing that costs time share one rehearsal.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_distill.config.validation import each_teacher
from lightning_distill.planning.dry_run import DryRun, profile_dry_run
from lightning_distill.report.plan_table import PLAN, print_plan
from lightning_distill.run.builder import build_run
from lightning_distill.run.preparation import prepare_data
from lightning_distill.run.settings import plain_settings, resume_policy
from lightning_distill.storage.artifacts import Artifact, Store, key_of, write_atomic
from lightning_distill.sweeps.job import Job, results_in
from lightning_distill.sweeps.job_key import effective_settings
from lightning_distill.sweeps.resume import job_status, last_folder
from lightning_distill.training.checkpoint_io import newest, step_of
from lightning_distill.training.teacher import Teacher, api_teacher, find_teacher, trained_teachers

log = logging.getLogger(__name__)

TUNED = ("loss", "optimizer", "schedule")  # whose numbers cost the same, unless they are 0


def plan(cfg: DictConfig, job: Job) -> None:
    """Notes what this job needs in plan.json; alone, prints it."""
    hydra = HydraConfig.get()
    alone = hydra.mode != RunMode.MULTIRUN
    state, steps = ("new", 0) if alone else _state(cfg, job)
    found: dict[str, Any] = {"job": job.name, "overrides": job.overrides, "key": job.key}
    found |= {"state": state, "from_step": steps, "outputs": cfg.paths.outputs}
    found["number"] = 0 if alone else hydra.job.num
    if state in ("new", "running"):
        found |= requirements(cfg, job, cfg.student.max_steps - steps)
    write_atomic(job.folder / PLAN, json.dumps(found, indent=2).encode())
    if alone:
        print_plan(job.folder)


def _state(cfg: DictConfig, job: Job) -> tuple[str, int]:
    """What the sweep itself will find of this job, and the step that it goes on from."""
    there = last_folder(Path(cfg.paths.outputs), job)
    if not there or (there.name, there.parent.name) != (job.name, job.folder.parent.name):
        there = job.folder  # that is another sweep's
    state, _ = job_status(resume_policy(cfg), job, there)
    if state != "new" or results_in(there).get("status") != "running":
        return state, 0
    last = newest(there / "checkpoints")
    return ("running", step_of(last)) if last else ("new", 0)


def requirements(cfg: DictConfig, job: Job, steps: int) -> dict[str, Any]:
    """Bytes, seconds and so on of `steps` of the student, and of what must be there before."""
    run = build_run(cfg)
    objective, transfer, store = run.make_objective(), run.make_transfer(), Store(run.outputs)
    data, teacher_data = prepare_data(run)
    teachers = trained_teachers(run.teacher, run.trainers, store, teacher_data)
    trained = [one for one in teachers.values() if one]
    if len(trained) < len(teachers):
        trained = []
    settings = cost_class(cfg) | {"trained": bool(trained), "started": job.started}

    def make(folder: Path) -> dict[str, Any]:
        log.info("%s: timing a few steps", job.name)
        return profile_dry_run(cfg, job, store, trained, folder)

    alone = HydraConfig.get().mode != RunMode.MULTIRUN
    rehearsals = Store(job.folder if alone else job.folder.parent)
    cost = DryRun.read(rehearsals.get("rehearsal", settings, make).manifest["content"])
    if alone:
        shutil.rmtree(rehearsals.root)
    blocks = cfg.data.batch_size * cfg.trainer.accumulate_grad_batches * cost.devices
    saves = cfg.student.max_steps >= cfg.checkpoint_every_n_steps  # the last one stays
    found: dict[str, Any] = {
        "parameters": cost.student_parameters,
        "tokens": steps * blocks * data.examples("train").positions,
        "flops": steps * cost.student.flops,
        "seconds": cost.student.seconds(cfg, steps) + cost.evaluation + cost.rest,
        "memory_mb": cost.student.memory_mb,
        "bytes": cost.run_bytes + cost.checkpoint_bytes * saves,
        "shared": [],
    }
    asked = objective.needs_teacher or transfer.supervises_by_text
    if asked or cfg.student.initialize == "teacher_layers":
        found["shared"] += _of_teachers(cfg, teachers, cost)
    units = transfer.units_to_prepare(data, teacher_data)
    if asked and units and cost.ahead:
        node = effective_settings(run.settings)["transfer"]
        made_from: Any = {"teachers": list(teachers), **node, "tokens": data.artifact.key}
        if len(trained) == len(teachers):
            if run.teacher.is_api:
                teacher: Teacher | None = api_teacher(run.teacher, teacher_data)
            else:
                teacher = find_teacher(run.teacher, run.trainers, store, teacher_data)
            assert teacher
            made_from = transfer.made_from(data, teacher)
        ahead = cost.ahead
        found["shared"].append(
            {
                "what": ahead.kind,
                "id": key_of(made_from),
                "there": store.find(ahead.kind, made_from) is not None,
                "count": units,
                "seconds": ahead.seconds + units * ahead.unit_seconds,
                "flops": units * ahead.unit_flops,
                "bytes": ahead.bytes + units * ahead.unit_bytes,
                "memory_mb": ahead.memory_mb,
            }
        )
    return found


def _of_teachers(
    cfg: DictConfig, teachers: dict[str, Artifact | None], cost: DryRun
) -> Iterator[dict[str, Any]]:
    nodes = [one.teacher for one in each_teacher(cfg) if one.teacher.max_steps]
    for index, (key, there) in enumerate(teachers.items()):
        entry = {"what": "teacher", "id": key, "there": there is not None}
        entry["parameters"] = (cost.teacher_parameters or 0) // len(teachers)
        if cost.teachers:  # else all are there
            training, steps = cost.teachers[index], nodes[index].max_steps
            entry |= {
                "count": steps,
                "seconds": training.seconds(cfg, steps) + cost.teacher_rest,
                "flops": steps * training.flops,
                "bytes": cost.teacher_bytes,
                "memory_mb": training.memory_mb,
            }
        yield entry


def cost_class(cfg: DictConfig) -> dict[str, Any]:
    """Equal for jobs that cost the same: of what is tuned, it only counts what is 0."""
    settings = effective_settings(plain_settings(cfg))
    del settings["seed"], settings["student"]["max_steps"]
    for role in (settings, settings["teacher"]):
        role |= {group: _whether(role[group]) for group in TUNED if group in role}
    own = ("max_steps", "seed", "weights")
    settings["teacher"] |= {key: _whether(settings["teacher"].get(key)) for key in own}
    return settings


def _whether(value: Any) -> Any:
    """With every number as whether it is 0."""
    if isinstance(value, dict):
        return {key: _whether(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whether(one) for one in value]
    return bool(value) if isinstance(value, int | float) else value
