"""The beginning and the end of a sweep, as Hydra tells of them, and what it ends in."""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from lightning_distill.config.hydra_plugins import check_plugins
from lightning_distill.config.messages import explain
from lightning_distill.config.validation import check, check_sweep
from lightning_distill.distributed import process_group
from lightning_distill.errors import Refused, unknown_name
from lightning_distill.report.summarize import summarize
from lightning_distill.stages import LOOKING, STAGES
from lightning_distill.storage.locks import locked
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.job import RESULTS, problems_of_objectives, results_in
from lightning_distill.sweeps.records import distinguishing_overrides, job_folders

log = logging.getLogger(__name__)


class Summary(Callback):
    """Hydra calls it before it makes a folder, and when all jobs of a sweep have ended: table,
    results.csv and report.html."""

    under_way: "tuple[Summary, DictConfig] | None" = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if process_group.is_rank_zero():
            _refuse_mistakes(config, check)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # What is wrong for all jobs is refused before each leaves a folder that failed.
        _refuse_mistakes(config, check_sweep)
        check_plugins(config)
        if process_group.is_distributed():
            raise Refused(
                "torchrun and srun start the processes of one run, and a sweep starts those of "
                "each job itself. Leave them out, or -m."
            )
        if config.stage in LOOKING:
            _look_from_outside(config)
        # Resolved once, here; jobs inherit what is, so that all have the same.
        self.started, self.folder = config.sweep.started, Path(config.hydra.sweep.dir)
        self.command = config.sweep.command
        Summary.under_way = self, config

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        Summary.under_way = None
        if config.stage == "plan":
            from lightning_distill.report.plan_table import print_plan

            print_plan(self.folder)
        elif not job_folders(self.folder):
            raise Refused(
                "the command sweeps over nothing, as glob(x*) and range(2, 1) do; see "
                f"{self.folder / 'multirun.yaml'}."
            )
        elif config.stage in ("distill", "teacher"):
            compare_with_late_teachers(self.folder, config.paths.outputs)
            summarize(self.folder)
        now = {file.parent: results_in(file.parent) for file in self.folder.rglob(RESULTS)}
        now = {f: found for f, found in now.items() if found.get("started") == self.started}
        ended = {f: found for f, found in now.items() if found["status"] != "finished"}
        names = dict(
            zip(now, distinguishing_overrides([f["overrides"] for f in now.values()]), strict=True)
        )
        for folder, found in sorted(ended.items()):
            name = names[folder] or folder.name
            why = found.get("error", "killed before its end").splitlines()[0]
            print(f"{found['status']}: {name}: {why} ({folder / 'job.log'})")
        if ended:
            every = len(ended) == len(now) and all(f.get("user_error") for f in ended.values())
            # Hydra turns a callback's exceptions into warnings, this one excepted.
            sys.exit(2 if every else 1)


def _refuse_mistakes(config: DictConfig, check: Callable[[DictConfig, list[str]], None]) -> None:
    """Past Hydra, which turns a callback's other exceptions into warnings."""
    try:
        if config.stage not in STAGES:
            raise unknown_name("stage", config.stage, STAGES)
        check(config, problems_of_objectives(config.sweep.objectives))
    except Exception as error:
        if reason := explain(error):
            raise Refused(reason) from error
        # No mistake of the user's: the job comes upon it, and says more.


def _look_from_outside(config: DictConfig) -> None:
    """Gives the stages that leave a sweep as it is a folder of their own."""
    folder = Path(config.paths.outputs) / config.stage / Path(config.hydra.sweep.dir).name
    shutil.rmtree(folder, ignore_errors=True)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    with flag_override(config, "readonly", False):
        config.hydra.sweep.dir = str(folder)
        if config.hydra.sweeper.get("storage"):  # a study is not to learn of these jobs
            config.hydra.sweeper.storage = None
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def end_what_broke_off(error: BaseException) -> str | None:
    """The summary of a sweep whose launcher gives up, as it does when a job's process is killed.

    Where no job began, as without a Slurm to ask, returns what to tell the user. None where no
    sweep is under way.
    """
    if Summary.under_way is None:
        return None
    summary, config = Summary.under_way
    index = Path(config.paths.outputs).resolve() / "artifacts" / "job"
    reason = shorten(str(error) or repr(error), 300)

    def begun() -> list[dict[str, Any]]:
        found = (results_in(file.parent) for file in summary.folder.rglob(RESULTS))
        return [results for results in found if results.get("started") == summary.started]

    for key in {results["key"] for results in begun() if results["status"] == "running"}:
        with locked(index / f"{key}.lock", f"job {key}"):
            pass  # some launchers leave the others running; then they are waited for
    if not begun():
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        return None if launcher == "basic" else f"hydra/launcher={launcher}: {reason}"
    print(f"the sweep broke off: {reason}\nThe same command goes on with what was not finished.")
    summary.on_multirun_end(config)
    sys.exit(1)


def compare_with_late_teachers(folder: Path, outputs: str) -> None:
    """A baseline that ran before the sweep's teacher was there is measured against it now."""
    rows = [r for r in compare_jobs(folder) if r.nll is not None and r.config]
    if not any(r.results.get("teacher") for r in rows):
        return
    for row in rows:
        if not row.results.get("teacher"):
            from lightning_distill.reevaluation import evaluate_run

            log.info("%s ran before its teacher was there: comparing them now", row.name)
            evaluate_run(row.folder, outputs)
