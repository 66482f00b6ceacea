"""The Hydra callback that runs before and after the jobs of a sweep."""

import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, flag_override

from lightning_distill.cli.sweep_progress import SweepProgress
from lightning_distill.config.hydra_plugins import check_plugins
from lightning_distill.config.messages import explain
from lightning_distill.config.settings import Settings, plain_settings
from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.config.validation import check, check_sweep
from lightning_distill.distributed import process_group
from lightning_distill.errors import Refused
from lightning_distill.losses.checks import problems_of_loss
from lightning_distill.report.summarize import summarize
from lightning_distill.screen import begin_command, shown
from lightning_distill.storage.locks import locked
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.job import RESULTS, problems_of_objectives, results_in
from lightning_distill.sweeps.records import distinguishing_overrides, job_folders

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Refuses mistakes before Hydra makes a folder, and compares the jobs when a sweep ends."""

    running: "tuple[SweepCallback, DictConfig] | None" = None
    progress: SweepProgress | None = None  # in the process that runs the sweep
    startup = ExitStack()  # what is shown until the settings are composed
    last_folder: Path  # of the run or the sweep that ended last in this process

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.startup.close()
        begin_command()
        if process_group.is_rank_zero():
            _refuse_mistakes(config, check)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        SweepCallback.last_folder = Path(config.hydra.runtime.output_dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        begin_command()
        # A mistake that all jobs share is refused once, before each leaves a failed job's folder.
        _refuse_mistakes(config, check_sweep)
        check_plugins(config)
        if process_group.is_distributed():
            raise Refused(
                "torchrun and srun start the processes of one run, and a sweep starts those of "
                "each job itself. Leave them out, or -m."
            )
        if find_stage(config.stage).inspects_only:
            _use_own_folder(config)
        # Interpolations of the time are resolved once, here, so that all jobs have the same.
        self.started, self.folder = config.sweep.started, Path(config.hydra.sweep.dir)
        self.command = config.sweep.command
        SweepCallback.running = self, config
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":  # jobs of other processes
            self.startup.close()
        self.progress = SweepProgress(self.folder, self.started)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.startup.close()
        if self.progress and config.hydra.mode == RunMode.MULTIRUN:
            self.progress.start(config.hydra.job.num, list(config.hydra.overrides.task))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self.progress and config.hydra.mode == RunMode.MULTIRUN:
            self.progress.end(Path(config.hydra.runtime.output_dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.startup.close()
        SweepCallback.running = None
        SweepCallback.last_folder = self.folder
        if config.stage == "plan":
            from lightning_distill.report.plan_table import print_plan

            print_plan(self.folder)
        elif not job_folders(self.folder) and not any(self.folder.rglob("job.log")):
            raise Refused(
                "the command sweeps over nothing, as glob(x*) and range(2, 1) do; see "
                f"{self.folder / 'multirun.yaml'}."
            )
        elif find_stage(config.stage).makes_jobs:
            compare_with_late_teachers(self.folder, config.paths.outputs)
            summarize(self.folder)
        self._exit_for_unfinished_jobs()

    def jobs(self) -> dict[Path, dict[str, Any]]:
        """The results of the jobs that this command has begun, by their folder."""
        folders = (file.parent for file in self.folder.rglob(RESULTS))
        results = {folder: results_in(folder) for folder in folders}
        return {f: one for f, one in results.items() if one.get("started") == self.started}

    def _exit_for_unfinished_jobs(self) -> None:
        """Prints each job that did not finish. Exits with 2 if mistakes of the user's are the
        reason for all, with 1 if not."""
        jobs = self.jobs()
        overrides = distinguishing_overrides([job["overrides"] for job in jobs.values()])
        names = dict(zip(jobs, overrides, strict=True))
        unfinished = {f: job for f, job in sorted(jobs.items()) if job["status"] != "finished"}
        for folder, job in unfinished.items():
            reason = job.get("error", "killed before its end").splitlines()[0]
            name = names[folder] or folder.name
            print(f"{job['status']}: {name}: {reason} ({shown(folder / 'job.log')})")
        if unfinished:
            mistakes = len(unfinished) == len(jobs) and all(
                job.get("user_error") for job in unfinished.values()
            )
            # Hydra turns other exceptions of a callback into warnings.
            sys.exit(2 if mistakes else 1)


def problems_elsewhere(settings: Settings) -> list[str]:
    """What packages above `config` know of wrong settings, without torch."""
    task = str(settings["data"].get("_target_"))
    problems = problems_of_objectives(settings["sweep"]["objectives"], task)
    return [*problems, *problems_of_loss(settings["loss"])]


def _refuse_mistakes(config: DictConfig, check: Callable[[DictConfig, list[str]], None]) -> None:
    """Raises Refused, since Hydra turns other exceptions of a callback into warnings."""
    try:
        find_stage(config.stage)
        check(config, problems_elsewhere(plain_settings(config)))
    except Exception as error:
        if reason := explain(error):
            raise Refused(reason) from error
        # Not a mistake of the user's: the job meets it too, and shows the traceback.


def _use_own_folder(config: DictConfig) -> None:
    """Makes a stage that inspects a sweep write elsewhere, and leave an Optuna study as it is."""
    folder = Path(config.paths.outputs) / config.stage / Path(config.hydra.sweep.dir).name
    shutil.rmtree(folder, ignore_errors=True)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    with flag_override(config, "readonly", False):
        config.hydra.sweep.dir = str(folder)
        if config.hydra.sweeper.get("storage"):
            config.hydra.sweeper.storage = None
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def end_broken_sweep(error: BaseException) -> str | None:
    """Ends a sweep whose launcher raised, as launchers do when the process of a job is killed.

    Summarises the jobs that ran, and exits with 1. Returns the message for the user if no job
    began (Slurm is not there, for example), and None if no sweep is running.
    """
    if SweepCallback.running is None:
        return None
    sweep, config = SweepCallback.running
    index = Path(config.paths.outputs).resolve() / "artifacts" / "job"
    reason = shorten(str(error) or repr(error), 300)
    for key in {job["key"] for job in sweep.jobs().values() if job["status"] == "running"}:
        with locked(index / f"{key}.lock", f"job {key}"):
            pass  # some launchers leave the other jobs running: wait for them
    if not sweep.jobs():
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        return None if launcher == "basic" else f"hydra/launcher={launcher}: {reason}"
    print(f"The sweep broke off: {reason}\nRun the same command again to finish it.")
    sweep.on_multirun_end(config)
    sys.exit(1)


def compare_with_late_teachers(folder: Path, outputs: str) -> None:
    """Evaluates baselines again that ran before the sweep's teacher existed."""
    rows = [r for r in compare_jobs(folder) if r.nll is not None and r.config]
    if not any(r.results.get("teacher") for r in rows):
        return
    for row in rows:
        if not row.results.get("teacher"):
            from lightning_distill.reevaluation import evaluate_run

            log.info("%s ran before its teacher existed: comparing them now", row.name)
            evaluate_run(row.folder, outputs)
