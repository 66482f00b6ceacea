"""What makes one thing of a sweep's jobs: their folders, what is there already, the summary.

The sweep's folder is named after what the command sets and sweeps over, so that the same command,
or one with more values, goes on where it stopped. A job is known by the key of its settings: what
is finished is not run again, and a job with the same key as another takes over its results.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from lightning_distill import ConfigError
from lightning_distill.artifacts import locked, write_whole
from lightning_distill.comparison import Row, gather
from lightning_distill.jobs import job_folders
from lightning_distill.plugins import check_plugins
from lightning_distill.results import RESULTS, Job, read_results, settings_key, write_results

log = logging.getLogger(__name__)

LONGEST_NAME = 120  # characters of a folder's name; file systems take 255 bytes
NAMELESS = ("paths", "name", "logger", "sweep")  # overrides that tell no job from another
LOOKING = ("plan", "doctor")  # stages that leave a sweep as it is
LEFT = ("samples.json", "metrics.csv", "generated.jsonl")  # by a job, besides its student


def folder_name(overrides: list[str]) -> str:
    """Overrides as the name of a folder: `loss.alpha=1,student=xs`.

    Slashes would make sub-folders; what is too long is cut and told apart by a hash.
    """
    name = ",".join(overrides).replace("experiment/", "").replace("/", ".")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def sweep_name(given: str | None, overrides: list[str]) -> str:
    """The names of what a command sweeps over, without their values, and what it sets.

    So the same command, and one with more values, goes on with the same sweep.
    """
    if given is not None:
        return str(given)
    swept, fixed = [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if key == "sweep":  # a committed one
            swept.append(str(override.value()))
        elif key.split(".")[0] in NAMELESS or (key == "stage" and override.value() in LOOKING):
            continue
        elif override.is_sweep_override():
            swept.append(key)
        else:
            fixed.append(str(override.input_line))
    return folder_name([*sorted(swept), *sorted(fixed)]) or "all"


def job_folder(*, _root_: DictConfig) -> str:
    """A job's overrides; and its key, where the folder of that name is of other settings."""
    named = (*NAMELESS, "experiment")
    parts = [o for o in _root_.hydra.overrides.task if o.split("=")[0].split(".")[0] not in named]
    looks = [f"stage={stage}" for stage in LOOKING]
    name = folder_name(sorted(part for part in parts if part not in looks)) or "job"
    key = settings_key(_root_)
    there = _results_in(Path(_root_.hydra.sweep.dir) / name).get("key", key)
    return name if there == key else f"{name}-{key[:8]}"


def run_once(cfg: DictConfig, job: Job, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A sweep's job: what it left before, or what another with its key did, or what it is run for.

    Two processes that come with one key take turns.
    """
    index = _index(cfg, job)
    with locked(index.with_suffix(".lock"), f"job {job.key}"):
        state, there = standing(cfg, job, job.folder)
        if state == "failed":
            log.info("%s: failed before, skipped as sweep.rerun=none says", job.name)
            return _results_in(there)
        if state == "twin":
            return _take_over(there, job)
        if state == "new" and (reason := _given_up(cfg, job)):
            log.info("%s: not run, %s", job.name, reason)
            results = job.state("not run", error=reason)
            write_results(job.folder, results)
            return results
        where = os.path.relpath(job.folder, index.parent)
        write_whole(index, json.dumps({"folder": where}).encode())
        if state == "finished":
            log.info("%s: finished before, skipped", job.name)
            return _results_in(there)
        if not _results_in(job.folder):  # so that it is known to have begun
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
            write_results(job.folder, job.state("running"))
        return run()


def standing(cfg: DictConfig, job: Job, folder: Path) -> tuple[str, Path]:
    """What is there of a sweep's job, and where, by what `sweep.rerun` says is not run again:
    `failed` what is finished, `none` what has failed too, `all` nothing.

    `finished` or `failed` in its own folder, `twin`: finished in that of another job with its key,
    or `new`, which is to be run.
    """
    if _finished(folder, cfg, job):
        return "finished", folder
    if _results_in(folder).get("status") == "failed" and cfg.sweep.rerun == "none":
        return "failed", folder
    if (twin := pointed_at(cfg, job)) and _finished(twin, cfg, job):
        return "twin", twin
    return "new", folder


def _index(cfg: DictConfig, job: Job) -> Path:
    return Path(cfg.paths.outputs).resolve() / "artifacts" / "job" / f"{job.key}.json"


def pointed_at(cfg: DictConfig, job: Job) -> Path | None:
    """The folder in which the job of this key last began, where there is one."""
    index = _index(cfg, job)
    try:
        return (index.parent / json.loads(index.read_text())["folder"]).resolve()
    except (OSError, ValueError, KeyError):
        return None


def _results_in(folder: Path) -> dict[str, Any]:
    """What is known of a job; nothing where there is none."""
    try:
        return read_results(folder)
    except (OSError, ValueError):
        return {}


def _finished(folder: Path, cfg: DictConfig, job: Job) -> bool:
    found = _results_in(folder)
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
    others = (_results_in(file.parent) for file in job.folder.parent.glob(f"*/{RESULTS}"))
    failed = [r for r in others if r.get("status") == "failed" and r["started"] == job.started]
    return (
        f"{len(failed)} failed (sweep.stop_after_failures={most})" if len(failed) >= most else None
    )


class Summary(Callback):
    """Hydra calls it when all jobs of a sweep have ended: table, results.csv and report.html."""

    under_way: "tuple[Summary, DictConfig] | None" = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_plugins(config)
        if config.stage in LOOKING:
            _look_from_outside(config)
        # Resolved once, here; jobs inherit what is, so that all have the same.
        self.started, self.folder = config.sweep.started, Path(config.hydra.sweep.dir)
        self.command = config.sweep.command
        Summary.under_way = self, config

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        Summary.under_way = None
        if config.stage == "plan":
            from lightning_distill.report.planned import print_plan

            print_plan(self.folder)
        elif config.stage in ("distill", "teacher"):
            compare_with_late_teachers(self.folder, config.paths.outputs)
            summarise(self.folder)
        now = {file.parent: _results_in(file.parent) for file in self.folder.rglob(RESULTS)}
        now = {f: found for f, found in now.items() if found.get("started") == self.started}
        ended = {f: found for f, found in now.items() if found["status"] != "finished"}
        for folder, found in sorted(ended.items()):
            why = found.get("error", "killed before its end").splitlines()[0]
            print(f"{found['status']}: {folder.name}: {why} ({folder / 'job.log'})")
        if ended:
            mendable = len(ended) == len(now) and all(f.get("mendable") for f in ended.values())
            # Hydra turns a callback's exceptions into warnings, this one excepted.
            sys.exit(2 if mendable else 1)


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
        found = (_results_in(file.parent) for file in summary.folder.rglob(RESULTS))
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


def summarise(folder: Path) -> list[Row]:
    """Writes results.csv and report.html, prints the table, and returns the rows."""
    from lightning_distill.report import print_table, write_csv, write_report  # plotly is slow

    rows = gather(folder)
    write_csv(rows, folder / "results.csv")
    write_report(rows, folder / "report.html")
    print_table(rows)
    print(f"results: {folder / 'results.csv'}\nreport:  {folder / 'report.html'}")
    return rows


def summarise_again(cfg: DictConfig, job: Job) -> None:
    """`stage=report`: the summary of a sweep's folder, `report.sweep=<folder>`, as it is now."""
    if cfg.report.sweep is None:
        raise ConfigError("stage=report needs report.sweep=<the folder of a sweep>.")
    folder = Path(cfg.report.sweep)
    if not job_folders(folder):
        there = "holds" if folder.is_dir() else "is no folder: it holds"
        others = (f.parent for f in Path(cfg.paths.outputs).rglob("multirun.yaml"))
        sweeps = ", ".join(str(f) for f in sorted(others)[:10] if f.parent.name not in LOOKING)
        hint = f" Sweeps are {sweeps}." if sweeps else ""
        raise ConfigError(f"report.sweep={folder} {there} no job, finished or begun.{hint}")
    summarise(folder)


def compare_with_late_teachers(folder: Path, outputs: str) -> None:
    """A baseline that ran before the sweep's teacher was there is measured against it now."""
    rows = [r for r in gather(folder) if r.nll is not None and r.cfg]
    if not any(r.results.get("teacher") for r in rows):
        return
    for row in rows:
        if not row.results.get("teacher"):
            from lightning_distill.pipeline import evaluate_run

            log.info("%s ran before its teacher was there: comparing them now", row.name)
            evaluate_run(row.folder, outputs)
