"""What the command line needs of the composed config before torch is imported."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from lightning_distill.config import allowlist
from lightning_distill.errors import ConfigError, one_line
from lightning_distill.sweeps.job import RESULTS, Job, check_results, read_results
from lightning_distill.sweeps.job_key import WITHOUT_EFFECT, job_key
from lightning_distill.sweeps.resume import ResumePolicy

SETTINGS = ".hydra/config.yaml"
GROUPS = {"data", "teacher", "student", "transfer", "loss", "trainer", "paths"}  # of every run


def plain_settings(cfg: DictConfig) -> dict[str, Any]:
    """All settings but Hydra's, with interpolations resolved."""
    return _plain(cfg, ["hydra"])


def job_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings that the key of a job depends on, with interpolations resolved."""
    return _plain(cfg, WITHOUT_EFFECT)


def _plain(cfg: DictConfig, without: list[str] | tuple[str, ...]) -> dict[str, Any]:
    # Resolved in the whole config: `sweep.command` is an interpolation of `hydra`.
    nodes = {str(key): cfg[key] for key in cfg if key not in without}
    return {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in nodes.items()
    }


def make_job(cfg: DictConfig, folder: Path, name: str, group: str, overrides: list[str]) -> Job:
    key, resumes = job_key(job_settings(cfg)), cfg.trainer.get("resume", "auto") == "auto"
    return Job(folder, name, group, overrides, cfg.seed, key, cfg.sweep.started, resumes)


def resume_policy(cfg: DictConfig) -> ResumePolicy:
    return ResumePolicy(
        outputs=Path(cfg.paths.outputs),
        rerun=cfg.sweep.rerun,
        stop_after_failures=cfg.sweep.stop_after_failures,
        tasks=cfg.evaluate.tasks or (),
        speed=cfg.evaluate.speed,
    )


def finished_run(setting: str, folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and results of the finished run in `folder`.

    Raises ConfigError, which names the key `setting`, where the folder is not that of a run, a file
    of it is damaged, or the run did not finish.
    """
    for needed in (SETTINGS, RESULTS):
        if not (folder / needed).exists():
            raise ConfigError(f"{setting}={folder} is not the folder of a run: no {needed}.")
    try:
        file = RESULTS
        results = read_results(folder)
        check_results(results)
        file = SETTINGS
        cfg = _load_settings(folder / SETTINGS, f"{setting}={folder}: ")
    except ConfigError:
        raise
    except (OSError, ValueError, YAMLError) as error:
        reason = one_line(error)
        raise ConfigError(f"{setting}={folder}: its {file} cannot be read: {reason}.") from error
    if results["status"] != "finished":
        status = f"{setting}={folder} is {results['status']}"
        raise ConfigError(f"{status}; run its command again first.")
    return cfg, results


def _load_settings(file: Path, where: str) -> DictConfig:
    cfg = OmegaConf.load(file)
    if isinstance(cfg, DictConfig):
        allowlist.check_targets(OmegaConf.to_container(cfg), where)
    if not isinstance(cfg, DictConfig) or not set(cfg) >= GROUPS:
        raise ValueError(f"it lacks one of {', '.join(sorted(GROUPS))}")
    return cfg
