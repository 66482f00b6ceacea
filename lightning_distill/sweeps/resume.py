"""What a job finds from earlier commands, and whether it has to run.

Re-running a command resumes it. A sweep's folder is named after its overrides, a job is known by
the key of its settings: a finished job is skipped, and a job with the key of a finished one reuses
that one's results. `artifacts/job/<key>.json` holds the folder in which a job with that key last
began.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from lightning_distill.constants import PREDICTIONS, SAMPLES
from lightning_distill.errors import Refused
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.storage.locks import is_held, locked
from lightning_distill.sweeps.job import (
    RESULTS,
    Job,
    is_resumable,
    read_results,
    results_in,
    write_results,
)

log = logging.getLogger(__name__)

LOCK = ".lock"  # in the folder of a single run
HYDRA_FILES = {"job.log", *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides"))}
# Besides the student.
REUSED_FILES = (SAMPLES, PREDICTIONS, "metrics.csv", "generated.jsonl")

# finished: in its own folder. reused: another folder holds a finished job with its key.
# failed: and not to be repeated. new: has to run, from its last checkpoint where it has one.
Status = Literal["finished", "reused", "failed", "new"]
RunJob = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class ResumePolicy:
    """The settings that decide which jobs of a sweep run."""

    outputs: Path
    rerun: str = "failed"  # failed: unfinished and failed jobs; all; none: unfinished jobs only
    stop_after_failures: int | None = None  # of this command
    tasks: Sequence[str] = ()  # evaluate.tasks and evaluate.speed, of which a skipped job
    speed: bool = False  # may lack the scores


def refuse_other_results(job: Job) -> None:
    """Raises Refused where the job's folder holds the results of another job."""
    results = results_in(job.folder)
    if results.get("status") != "finished" or results.get("key") in (None, job.key):
        return
    other = " ".join(results.get("overrides") or ["no overrides"])
    setting = "hydra.sweep.subdir or sweep.name" if job.is_of_sweep else "hydra.run.dir"
    raise Refused(
        f"{job.folder} holds the results of another job ({shorten(other, 200)}), which would be "
        f"overwritten. Set another {setting}."
    )


def run_single(job: Job, run: RunJob) -> dict[str, Any]:
    """Runs a job outside of a sweep. Raises ConfigError where its folder is in use."""
    with locked(job.folder / LOCK, f"{job.folder}", wait=False):
        return run()


def interrupted_run(runs: Path, key: str) -> Path | None:
    """The newest folder below `runs` from whose checkpoint a job with this key can go on."""
    for checkpoints in sorted(runs.glob("*/checkpoints"), reverse=True):
        folder, results = checkpoints.parent, results_in(checkpoints.parent)
        resumable = is_resumable(results) and any(checkpoints.glob("*.ckpt"))
        if resumable and results.get("key") == key and not is_held(folder / LOCK):
            return folder
    return None


def discard_empty_run(job: Job, outputs: Path) -> None:
    """Removes the folder of a single run that holds nothing but Hydra's files, and the folders
    around it below `outputs` that are empty then."""
    files = {str(file.relative_to(job.folder)) for file in job.folder.rglob("*") if file.is_file()}
    if not files <= HYDRA_FILES:
        return
    with suppress(OSError):  # the error that ended the run is about to be reported
        for name in files:
            (job.folder / name).unlink()
        (job.folder / ".hydra").rmdir()
        if outputs.resolve() in job.folder.parents:
            below = sorted(job.folder.rglob("*"), reverse=True)  # what a folder holds, then itself
            for folder in (*below, job.folder, *job.folder.parents):
                if folder == outputs.resolve():  # which may be the user's own
                    break
                folder.rmdir()


def run_once(policy: ResumePolicy, job: Job, run: RunJob) -> dict[str, Any]:
    """Runs a job of a sweep unless its results exist. Processes with one key take turns."""
    index = _index(policy.outputs, job)
    with locked(index.with_suffix(".lock"), f"job {job.key}"):
        status, folder = job_status(policy, job, job.folder)
        if status == "failed":
            log.info("%s: failed before, skipped because of sweep.rerun=none", job.name)
            return results_in(folder)
        if status == "reused":
            return _reuse(policy, job, folder)
        if status == "new" and (reason := _too_many_failures(policy, job)):
            return _give_up(job, reason)
        relative = os.path.relpath(job.folder, index.parent)
        write_atomic(index, json.dumps({"folder": relative}).encode())
        if status == "finished":
            log.info("%s: finished before, skipped", job.name)
            _log_missing_scores(policy, job)
            return results_in(folder)
        return _begin(job, run)


def job_status(policy: ResumePolicy, job: Job, folder: Path) -> tuple[Status, Path]:
    """What is known of a job of a sweep whose folder is `folder`, and the folder of its results."""
    if _is_finished(folder, policy, job):
        return "finished", folder
    if results_in(folder).get("status") == "failed" and policy.rerun == "none":
        return "failed", folder
    last = last_folder(policy.outputs, job)
    if last and _is_finished(last, policy, job):
        return "reused", last
    return "new", folder


def last_folder(outputs: Path, job: Job) -> Path | None:
    """The folder in which a job with this key last began, if it is below the outputs or beside this
    job's."""
    index = _index(outputs, job)
    try:
        folder = (index.parent / json.loads(index.read_text())["folder"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    roots = (outputs.resolve(), job.folder.parent.resolve())
    return folder if any(root in folder.parents for root in roots) else None


def _index(outputs: Path, job: Job) -> Path:
    return outputs.resolve() / "artifacts" / "job" / f"{job.key}.json"


def _is_finished(folder: Path, policy: ResumePolicy, job: Job) -> bool:
    results = results_in(folder)
    finished = results.get("status") == "finished" and results.get("key") == job.key
    counts = policy.rerun != "all" or results.get("started") == job.started
    return finished and counts and (folder / "student").exists()


def _begin(job: Job, run: RunJob) -> dict[str, Any]:
    if not results_in(job.folder):  # the results say from now on that the job has begun
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
        write_results(job.folder, job.results("running"))
    return run()


def _reuse(policy: ResumePolicy, job: Job, other: Path) -> dict[str, Any]:
    """Copies the results of another job with the same key, at a cost of 0 seconds."""
    log.info("%s: reuses the results of %s, which has the same settings", job.name, shown(other))
    shutil.rmtree(job.folder / "student", ignore_errors=True)
    shutil.copytree(other / "student", job.folder / "student", copy_function=_link_or_copy)
    for name in REUSED_FILES:
        if (other / name).exists():
            shutil.copy2(other / name, job.folder)
    results = read_results(other)
    cost = {k: 0.0 if k.endswith("_seconds") else v for k, v in results["cost"].items()}
    results |= job.results("finished", cost=cost, same_as=str(other))
    write_results(job.folder, results)
    _log_missing_scores(policy, job)
    return results


def _link_or_copy(source: str, target: str) -> None:
    """A hard link, where the file system allows it, keeps the weights on disk once."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _too_many_failures(policy: ResumePolicy, job: Job) -> str | None:
    """The reason not to run any more jobs of this command; None to go on."""
    limit = policy.stop_after_failures
    if limit is None:
        return None
    others = [results_in(file.parent) for file in job.folder.parent.glob(f"*/{RESULTS}")]
    failed = sum(r.get("status") == "failed" and r["started"] == job.started for r in others)
    return f"{failed} failed (sweep.stop_after_failures={limit})" if failed >= limit else None


def _give_up(job: Job, reason: str) -> dict[str, Any]:
    log.info("%s: not run, %s", job.name, reason)
    results = job.results("not run", error=reason)
    if not job.was_interrupted():  # whose own results keep it resumable
        write_results(job.folder, results)
    return results


def _log_missing_scores(policy: ResumePolicy, job: Job) -> None:
    """Says how to add the scores that `evaluate` asks for, which alone run no job again."""
    student = results_in(job.folder).get("student") or {}
    missing = ["evaluate.tasks"] if set(policy.tasks) - set(student.get("tasks", {})) else []
    missing += ["evaluate.speed"] if policy.speed and "speed" not in student else []
    if missing:
        log.info(
            "%s: lacks the scores of %s; add them by stage=evaluate evaluate.run='%s'",
            job.name,
            " and ".join(missing),
            shown(job.folder.parent),
        )
