"""What the command line makes of the settings before torch is imported."""

from pathlib import Path
from typing import Any

from yaml import YAMLError

from lightning_distill.config import untrusted
from lightning_distill.config.settings import Settings, load_settings
from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.errors import ConfigError, one_line
from lightning_distill.sweeps.job import RESULTS, check_results, read_results
from lightning_distill.sweeps.job_key import HARDWARE
from lightning_distill.sweeps.records import job_folders
from lightning_distill.sweeps.resume import ResumePolicy

SETTINGS = ".hydra/config.yaml"


def check_named_run(settings: Settings) -> None:
    """Raises ConfigError where the stage is on a finished run, and its settings name none."""
    stage = find_stage(settings["stage"])
    if stage.run is None or stage.config_node is None:
        return
    setting, given = f"{stage.config_node}.run", settings[stage.config_node]["run"]
    if given in (None, ""):
        raise ConfigError(f"stage={settings['stage']} needs {setting}=<{stage.run}>.")
    folder = Path(str(given))
    if (folder / RESULTS).exists() or not job_folders(folder):  # it is no sweep
        finished_run(setting, folder, settings["paths"]["outputs"])


def resume_policy(settings: Settings) -> ResumePolicy:
    return ResumePolicy(
        outputs=Path(settings["paths"]["outputs"]),
        rerun=settings["sweep"]["rerun"],
        stop_after_failures=settings["sweep"]["stop_after_failures"],
        tasks=settings["evaluate"]["tasks"] or (),
        speed=settings["evaluate"]["speed"],
    )


def finished_run(
    setting: str,
    folder: Path,
    outputs: str,
    evaluate: Settings | None = None,
    trainer: Settings | None = None,
) -> tuple[Settings, dict[str, Any]]:
    """The settings and results of the finished run in `folder`.

    outputs: where to look for its artifacts, in place of its own `paths.outputs`. evaluate: the
    `evaluate` node to use; the run's own if None. trainer: whose accelerator and devices to use;
    the run's own if None.
    Raises ConfigError, which names the key `setting`, where the folder is not that of a run, a file
    of it is damaged, the run did not finish, or its settings run code that is not allowed.
    """
    for needed in (SETTINGS, RESULTS):
        if not (folder / needed).exists():
            raise ConfigError(f"{setting}={folder} is not the folder of a run: no {needed}.")
    try:
        file = RESULTS
        results = read_results(folder)
        check_results(results)
        file = SETTINGS
        settings = load_settings(folder / SETTINGS, f"{setting}={folder}: ")
    except ConfigError:
        raise
    except (OSError, ValueError, YAMLError) as error:
        reason = one_line(error)
        raise ConfigError(f"{setting}={folder}: its {file} cannot be read: {reason}.") from error
    if results["status"] != "finished":
        status = f"{setting}={folder} is {results['status']}"
        raise ConfigError(f"{status}; run its command again first.")
    settings["paths"]["outputs"] = outputs
    if evaluate is not None:
        settings["evaluate"] = evaluate
    if trainer is not None:
        settings["trainer"] |= {key: trainer[key] for key in HARDWARE}
    untrusted.check(settings, f"{setting}={folder}: ")
    return settings, results
