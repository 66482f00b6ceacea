"""What the command of a sweep asked for, from the `multirun.yaml` that Hydra writes."""

from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lightning_distill.sweeps.job_files import read_yaml
from lightning_distill.sweeps.naming import affects_identity
from lightning_distill.sweeps.records import JobRecord


def read_sweep_command(folder: Path) -> tuple[list[str], list[list[str]]]:
    """The overrides of the sweep's last command, and the overrides of each job it asked for.

    The second is empty if another sweeper than Hydra's basic one chose the values. Both are empty
    if multirun.yaml is absent or damaged.
    """
    try:
        hydra = read_yaml(folder / "multirun.yaml")["hydra"]
        command = [str(override) for override in hydra["overrides"]["task"]]
        sweeper = hydra["sweeper"]
        if not sweeper["_target_"].endswith(".BasicSweeper"):
            return command, []
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*params, *command])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except (ValueError, TypeError, LookupError, AttributeError, HydraException):
        return [], []
    return command, jobs


def jobs_not_started(records: list[JobRecord], jobs: list[list[str]]) -> list[list[str]]:
    """The overrides of those jobs that have no folder yet."""

    def identity(overrides: list[str]) -> frozenset[str]:
        return frozenset(o for o in overrides if affects_identity(o.split("=")[0]))

    started = {identity(record.results["overrides"]) for record in records}
    return [job for job in jobs if identity(job) not in started]
