"""`stage=plan` profiles a dry run of the pipeline, and estimates what the command costs.

Each job writes its estimate to plan.json in its folder. One table is printed at the end of a sweep.
"""

import json

from lightning_distill.config.settings import Settings
from lightning_distill.experiment.builder import build_run
from lightning_distill.experiment.settings import resume_policy
from lightning_distill.planning.estimate import estimate_job
from lightning_distill.report.plan_table import PLAN, print_plan
from lightning_distill.storage.artifacts import write_atomic
from lightning_distill.sweeps.job import Job, results_in
from lightning_distill.sweeps.resume import ResumePolicy, job_status, last_folder
from lightning_distill.training.checkpoint_io import newest, step_of


def plan(settings: Settings, job: Job) -> None:
    """Writes plan.json; outside of a sweep, prints the table."""
    run = build_run(settings)
    state, step = _state(resume_policy(settings), job) if job.is_of_sweep else ("new", 0)
    content = {
        "job": job.name,
        "overrides": job.overrides,
        "key": job.key,
        "state": state,
        "from_step": step,
        "outputs": str(run.outputs),
        "number": job.number or 0,
    }
    if state in ("new", "running"):
        content |= estimate_job(run, job, step)
    write_atomic(job.folder / PLAN, json.dumps(content, indent=2).encode())
    if not job.is_of_sweep:
        print_plan(job.folder)


def _state(policy: ResumePolicy, job: Job) -> tuple[str, int]:
    """The state in which the sweep will find the job, and the step from which it will resume it."""
    folder = last_folder(policy.outputs, job)
    # The plan's own folder stands for the sweep's, unless the job of that sweep has begun.
    if not folder or (folder.name, folder.parent.name) != (job.name, job.folder.parent.name):
        folder = job.folder
    status, _ = job_status(policy, job, folder)
    if status != "new" or results_in(folder).get("status") != "running":
        return status, 0
    checkpoint = newest(folder / "checkpoints")
    return ("running", step_of(checkpoint)) if checkpoint else ("new", 0)
