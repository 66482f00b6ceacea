"""The command line: `lightning-distill [overrides]`, a Hydra application.

Nothing here imports torch, so that `--help`, completion and a mistyped name answer at once.
"""

import argparse
import logging
import os
import re
import sys
import traceback
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from lightning_distill import __version__
from lightning_distill.activity import activity
from lightning_distill.cli.completion import offer_values
from lightning_distill.cli.dispatch import follow_rank_zero, overrides_of_followers, run_stage
from lightning_distill.cli.help import describe, help_topics, list_stages
from lightning_distill.cli.hydra_callback import (
    SweepCallback,
    end_broken_sweep,
    problems_elsewhere,
)
from lightning_distill.cli.job_order import run_baselines_last
from lightning_distill.config import allowlist, typed_arguments, untrusted
from lightning_distill.config.catalog import CONF
from lightning_distill.config.hydra_plugins import prefer_own_configs
from lightning_distill.config.messages import explain
from lightning_distill.config.settings import Settings, plain_settings
from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.config.teacher_parts import forget_size
from lightning_distill.config.training_length import choose_length
from lightning_distill.config.unknown_keys import check_overrides
from lightning_distill.config.usual import fill_in, usual, warnings_of_rates
from lightning_distill.config.validation import check, check_secrets
from lightning_distill.distributed import process_group
from lightning_distill.distributed.gpus import (
    LAUNCHERS,
    best_precision,
    gpu_places,
    gpu_share,
    take_gpu,
    visible_gpus,
)
from lightning_distill.errors import ConfigError, Refused, Stopped
from lightning_distill.experiment.settings import check_named_run, resume_policy
from lightning_distill.metrics.declarations import directions
from lightning_distill.report.summarize import summarize_run
from lightning_distill.sweeps.job import (
    Job,
    objectives,
    results_in,
    write_results,
)
from lightning_distill.sweeps.job_key import WITHOUT_EFFECT, job_key
from lightning_distill.sweeps.naming import job_name, sweep_name
from lightning_distill.sweeps.resume import (
    discard_empty_run,
    interrupted_run,
    refuse_other_results,
    run_once,
    run_single,
)

log = logging.getLogger(__name__)

if sys.version_info >= (3, 14):
    # Hydra 1.3 gives an option a help text that is no string, which argparse refuses since 3.14.
    argparse.ArgumentParser._check_help = lambda *_: None


def expand_outputs(cfg: DictConfig, settings: Settings) -> None:
    """`~` in paths.outputs is the user's home, as in a shell. Raises ConfigError for a URL."""
    paths = settings.get("paths")
    path = paths.get("outputs") if isinstance(paths, dict) else None
    if isinstance(path, str) and re.match(r"[a-zA-Z][\w+.-]*://", path):
        raise ConfigError(f"paths.outputs={path} must be a folder of this machine, and not a URL.")
    if isinstance(path, str) and path.startswith("~"):
        with flag_override(cfg, ["readonly", "struct"], False):
            cfg.paths.outputs = str(Path(path).expanduser())


def key_of_job(cfg: DictConfig) -> str:
    return job_key(plain_settings(cfg, WITHOUT_EFFECT))


def job_folder(*, _root_: DictConfig) -> str:
    """The folder of a sweep's job, relative to the sweep's."""
    overrides, sweep = list(_root_.hydra.overrides.task), Path(_root_.hydra.sweep.dir)
    return job_name(overrides, sweep, key_of_job(_root_))


def run_folder(outputs: str, new: str, *, _root_: DictConfig) -> str:
    """The folder of a single run: that of an interrupted run with the same key, or a new one."""
    runs, interrupted = Path(outputs) / "runs" / str(_root_.name), None
    if _root_.stage == "distill" and _root_.trainer.get("resume") == "auto":
        # Where a setting is wrong, the job itself says so.
        with suppress(OmegaConfBaseException, LookupError, TypeError, ValueError, AttributeError):
            interrupted = interrupted_run(runs, key_of_job(_root_))
    return str(interrupted or runs / new)


# At import, because another process of a sweep unpickles `job`, which imports this module there.
OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True, use_cache=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("oc.env", untrusted.environment, replace=True)
# As a ListConfig, which `--cfg job --resolve` can print.
OmegaConf.register_new_resolver(
    "once", lambda v: OmegaConf.create(list(v or [])), replace=True, use_cache=True
)
OmegaConf.register_new_resolver("directions", directions, replace=True)
OmegaConf.register_new_resolver("visible_gpus", lambda: ",".join(visible_gpus()), replace=True)
OmegaConf.register_new_resolver("gpu_places", gpu_places, replace=True)
OmegaConf.register_new_resolver("gpu_share", gpu_share, replace=True)
OmegaConf.register_new_resolver("best_precision", best_precision, replace=True)
OmegaConf.register_new_resolver("list_stages", list_stages, replace=True)
OmegaConf.register_new_resolver("usual", usual, replace=True)
prefer_own_configs()
run_baselines_last()
offer_values()
if allowlist.allowed_by_user():  # modules of the working directory, as `python -m` finds them
    sys.path.append(os.getcwd())
untrusted.install(
    check_secrets, check_overrides, adjust=(expand_outputs, choose_length, forget_size, fill_in)
)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> float | list[float] | None:
    """One job, alone or of a sweep. Returns `sweep.objectives`, for sweepers that minimize them."""
    if not process_group.is_rank_zero():
        follow_rank_zero(plain_settings(cfg))
        return None
    if HydraConfig.get().job.chdir:  # relative paths are those of where the command was given
        os.chdir(HydraConfig.get().runtime.cwd)
    settings = plain_settings(cfg)
    this = make_job(cfg, settings)
    try:
        if find_stage(cfg.stage).makes_jobs:
            refuse_other_results(this)
        if cfg.stage != "distill":
            results = run(cfg, settings, this)
        elif this.is_of_sweep:
            results = run_once(resume_policy(settings), this, partial(run, cfg, settings, this))
        else:
            results = run_single(this, partial(run, cfg, settings, this))
            summarize_run(this.folder)
    except Exception as error:
        reason = explain(error)
        if reason and not this.is_of_sweep:
            discard_empty_run(this, Path(cfg.paths.outputs))
            raise Refused(reason) from error
        why = {"error": reason or repr(error), "user_error": reason is not None}
        if this.is_of_sweep or results_in(this.folder).get("status") == "running":
            write_results(this.folder, this.results("failed", **why))
        if not this.is_of_sweep:
            raise
        # The other jobs of the sweep run; its end lists the failures, and sets the exit code.
        log.error("%s failed: %s", this.folder.name, reason or traceback.format_exc())
        return None
    return objectives(results or {}, settings["sweep"]["objectives"])


def make_job(cfg: DictConfig, settings: Settings) -> Job:
    hydra_cfg = HydraConfig.get()
    alone, folder = hydra_cfg.mode != RunMode.MULTIRUN, Path(hydra_cfg.runtime.output_dir)
    return Job(
        folder=folder,
        name=cfg.name if alone else folder.name,
        group=cfg.name if alone else Path(hydra_cfg.sweep.dir).name,
        overrides=list(hydra_cfg.overrides.task),
        seed=cfg.seed,
        key=key_of_job(cfg),
        started=settings["sweep"]["started"],
        resumes=settings["trainer"].get("resume", "auto") == "auto",
        choices={group: str(option) for group, option in hydra_cfg.runtime.choices.items()},
        number=None if alone else hydra_cfg.job.num,
    )


def run(cfg: DictConfig, settings: Settings, this: Job) -> Any:
    """Checks the config and runs the stage. Not called for a job that has finished before."""
    check(cfg, problems_elsewhere(settings))
    check_named_run(settings)
    if find_stage(cfg.stage).makes_jobs or find_stage(cfg.stage).inspects_only:
        for warning in warnings_of_rates(settings):
            log.warning("%s", warning)
    if this.is_of_sweep and this.choices["hydra/launcher"] in LAUNCHERS:
        take_gpu(settings["sweep"]["jobs_per_gpu"])
    return run_stage(settings, this)


def call(arguments: list[str]) -> Path:
    """What the command does, in this process. Returns the folder of its run, or of its sweep.

    Raises ConfigError for a mistake of the user's, and KeyboardInterrupt if a signal stopped it.
    """
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    handlers = logging.getLogger().handlers
    before = list(handlers)
    sys.argv = ["lightning-distill", *typed_arguments.rewrite(arguments)]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        untrusted.allow_typed_keys(sys.argv[1:])
        _check_arguments(sys.argv[1:])
        job()
    except SystemExit:  # the sweep's end has printed the jobs that failed, and their results tell
        pass
    except Stopped as stop:
        raise KeyboardInterrupt("the same call resumes it") from stop
    except (Exception, Refused) as error:
        if message := _message(error):
            raise ConfigError(message) from error
        raise
    finally:
        handlers[:] = before  # Hydra has added its own
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    return SweepCallback.last_folder


def _check_arguments(arguments: list[str]) -> None:
    untrusted.check_flags(arguments)
    typed_arguments.check(arguments)


def _message(error: BaseException) -> str | None:
    """What the user can mend; None if the error is the program's."""
    return str(error) if isinstance(error, Refused) else explain(error)


def main() -> None:
    """Exits with 0; with 2 and a line or two for a mistake of the user's; with 1 otherwise."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal or a log may not be UTF-8
            stream.reconfigure(errors="replace")
    sys.argv[1:] = typed_arguments.rewrite(sys.argv[1:])
    untrusted.allow_typed_keys(sys.argv[1:])
    process_group.adopt_srun_environment()
    if not process_group.is_rank_zero():
        sys.argv += overrides_of_followers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors, instead of exiting with 1
    try:
        _check_arguments(sys.argv[1:])
        if "--version" in sys.argv[1:]:
            print(f"lightning-distill {__version__}")
        elif topics := help_topics(sys.argv[1:]):
            print("\n\n".join(describe(topic) for topic in topics))
        else:
            with SweepCallback.startup:  # a sweep's or a run's begin ends it, or else an error
                if not any(one.startswith("--") or one == "-sc" for one in sys.argv[1:]):
                    SweepCallback.startup.enter_context(activity("reading the settings"))
                job()
    except KeyboardInterrupt:
        sys.exit(130)
    except Stopped as stop:
        if process_group.is_rank_zero():
            print("Run the same command again to resume in the same folder.", file=sys.stderr)
        sys.exit(stop.exit_code)
    except (Exception, Refused) as error:
        message = _message(error)
        if message is None and not show_traceback:
            message = end_broken_sweep(error)
        if show_traceback or message is None:
            raise
        print(f"lightning-distill: {message}", file=sys.stderr)
        sys.exit(2)
