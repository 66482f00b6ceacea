"""What makes one thing of a sweep's jobs: their folders, and what is there already.

The sweep's folder is named after what the command sets and sweeps over, so that the same command,
or one with more values, goes on where it stopped. A job is known by the key of its settings: what
is finished is not run again, and a job with the same key as another takes over its results.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.storage.locks import locked
from lightning_distill.sweeps.job import RESULTS, Job, read_results, results_in, write_results

log = logging.getLogger(__name__)

LOCK = ".lock"  # of a single run's folder
NOTES = {"job.log", *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides"))}
LEFT = ("samples.json", "metrics.csv", "generated.jsonl")  # by a job, besides its student


def run_alone(job: Job, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A single run, whose folder is its alone for so long."""
    with locked(job.folder / LOCK, f"{job.folder}", wait=False):
        return run()


def discard_empty_run(job: Job, outputs: Path) -> None:
    """Removes Hydra's notes of a single run that was refused before it began."""
    there = {str(file.relative_to(job.folder)) for file in job.folder.rglob("*") if file.is_file()}
    if not there <= NOTES:
        return
    with suppress(OSError):  # what is to be said is why it was refused
        for name in there:
            (job.folder / name).unlink()
        (job.folder / ".hydra").rmdir()
        if outputs.resolve() in job.folder.parents:
            job.folder.rmdir()


def run_once(cfg: DictConfig, job: Job, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A sweep's job: what it left before, or what another with its key did, or what it is run for.

    Two processes that come with one key take turns.
    """
    index = _index(cfg, job)
    with locked(index.with_suffix(".lock"), f"job {job.key}"):
        state, there = job_status(cfg, job, job.folder)
        if state == "failed":
            log.info("%s: failed before, skipped as sweep.rerun=none says", job.name)
            return results_in(there)
        if state == "twin":
            results = _take_over(there, job)
            _say_what_is_lacking(cfg, job)
            return results
        if state == "new" and (reason := _given_up(cfg, job)):
            log.info("%s: not run, %s", job.name, reason)
            results = job.state("not run", error=reason)
            if not job.was_interrupted():  # which then goes on from its checkpoint another time
                write_results(job.folder, results)
            return results
        where = os.path.relpath(job.folder, index.parent)
        write_atomic(index, json.dumps({"folder": where}).encode())
        if state == "finished":
            log.info("%s: finished before, skipped", job.name)
            _say_what_is_lacking(cfg, job)
            return results_in(there)
        if not results_in(job.folder):  # so that it is known to have begun
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
            write_results(job.folder, job.state("running"))
        return run()


def job_status(cfg: DictConfig, job: Job, folder: Path) -> tuple[str, Path]:
    """What is there of a sweep's job, and where, by what `sweep.rerun` says is not run again:
    `failed` what is finished, `none` what has failed too, `all` nothing.

    `finished` or `failed` in its own folder, `twin`: finished in that of another job with its key,
    or `new`, which is to be run.
    """
    if _finished(folder, cfg, job):
        return "finished", folder
    if results_in(folder).get("status") == "failed" and cfg.sweep.rerun == "none":
        return "failed", folder
    if (twin := pointed_at(cfg, job)) and _finished(twin, cfg, job):
        return "twin", twin
    return "new", folder


def _say_what_is_lacking(cfg: DictConfig, job: Job) -> None:
    """What `evaluate` asks for changes no result that is there, and so runs no job again."""
    student = results_in(job.folder).get("student") or {}
    tasks = set(cfg.evaluate.tasks or []) - set(student.get("tasks", {}))
    asked = ["evaluate.tasks"] if tasks else []
    asked += ["evaluate.speed"] if cfg.evaluate.speed and "speed" not in student else []
    if asked:
        log.info(
            "%s: what %s asks for is added by stage=evaluate evaluate.run='%s'",
            job.name,
            " and ".join(asked),
            job.folder.parent,
        )


def _index(cfg: DictConfig, job: Job) -> Path:
    return Path(cfg.paths.outputs).resolve() / "artifacts" / "job" / f"{job.key}.json"


def pointed_at(cfg: DictConfig, job: Job) -> Path | None:
    """The folder in which the job of this key last began, where there is one: below the outputs,
    or beside this job's."""
    index = _index(cfg, job)
    try:
        found = (index.parent / json.loads(index.read_text())["folder"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    roots = (Path(cfg.paths.outputs).resolve(), job.folder.parent.resolve())
    return found if any(root in found.parents for root in roots) else None


def _finished(folder: Path, cfg: DictConfig, job: Job) -> bool:
    found = results_in(folder)
    done = found.get("status") == "finished" and found.get("key") == job.key
    fresh = cfg.sweep.rerun != "all" or found.get("started") == job.started
    return done and fresh and (folder / "student").exists()


def _take_over(twin: Path, job: Job) -> dict[str, Any]:
    """Makes another job's results this one's, at no cost."""
    log.info("%s: takes over the results of %s, which has its settings", job.name, twin)
    shutil.rmtree(job.folder / "student", ignore_errors=True)
    shutil.copytree(twin / "student", job.folder / "student", copy_function=_link)
    for name in LEFT:
        if (twin / name).exists():
            shutil.copy2(twin / name, job.folder)
    found = read_results(twin)
    free = {key: 0.0 for key in found["cost"] if key.endswith("_seconds")}
    results = found | job.state("finished", cost=found["cost"] | free, same_as=str(twin))
    write_results(job.folder, results)
    return results


def _link(source: str, target: str) -> None:
    """Weights once on the disk, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _given_up(cfg: DictConfig, job: Job) -> str | None:
    most = cfg.sweep.stop_after_failures
    if most is None:
        return None
    others = (results_in(file.parent) for file in job.folder.parent.glob(f"*/{RESULTS}"))
    failed = [r for r in others if r.get("status") == "failed" and r["started"] == job.started]
    return (
        f"{len(failed)} failed (sweep.stop_after_failures={most})" if len(failed) >= most else None
    )
