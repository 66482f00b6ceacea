"""The order of a sweep's jobs where they run one after another: those with a teacher first.

A baseline that runs when its teacher exists is compared with it at once, and needs no second
evaluation.
"""

from collections.abc import Sequence
from functools import wraps
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_distill.sweeps.job_key import is_baseline

# Overrides of other keys cannot turn a job into a baseline, or back.
DECISIVE = ("experiment", "sweep", "student", "student.initialize", "loss", "transfer")
Jobs = Sequence[Sequence[str]]


def run_baselines_last() -> None:
    """Makes Hydra's own launcher do so. Plugins of other names have to be in `hydra_plugins`."""
    # Hydra loads the modules of its plugins a second time, and instantiates those classes.
    name = f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}"
    launcher: Any = Plugins.instance().class_name_to_class[name]
    launch = launcher.launch

    @wraps(launch)
    def in_order(
        self: BasicLauncher, job_overrides: Jobs, initial_job_idx: int
    ) -> Sequence[JobReturn]:
        baseline = _baselines(self, job_overrides)
        order = sorted(range(len(job_overrides)), key=baseline.__getitem__)
        ran = launch(self, [job_overrides[index] for index in order], initial_job_idx)
        results = dict(zip(order, ran, strict=True))
        return [results[index] for index in range(len(order))]  # as the sweeper asked for them

    launcher.launch = in_order


def _baselines(launcher: BasicLauncher, jobs: Jobs) -> list[bool]:
    """Whether each job is a baseline. One job is composed for each choice of what decides."""
    decisive = [tuple(filter(_is_decisive, overrides)) for overrides in jobs]
    known: dict[tuple[str, ...], bool] = {}
    for overrides, key in zip(jobs, decisive, strict=True):
        if key not in known:
            known[key] = len(set(decisive)) > 1 and _is_baseline(launcher, list(overrides))
    return [known[key] for key in decisive]


def _is_baseline(launcher: BasicLauncher, overrides: list[str]) -> bool:
    """False where the job cannot be composed, which it says itself."""
    assert launcher.hydra_context is not None
    assert launcher.config is not None
    loader = launcher.hydra_context.config_loader
    try:
        config = loader.load_sweep_config(launcher.config, overrides)
        nodes = {key: config[key] for key in ("loss", "student", "transfer")}
        plain = {key: OmegaConf.to_container(node, resolve=True) for key, node in nodes.items()}
        return is_baseline(plain)
    except (HydraException, OmegaConfBaseException, LookupError, TypeError, AttributeError):
        return False


def _is_decisive(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    nodes = ("loss.", "loss@", "transfer.", "experiment/")
    return key != "loss.temperature" and (key in DECISIVE or key.startswith(nodes))
