"""Whether a run would go well, asked before anything is spent: `stage=doctor`.

A line for each check, with what was found, and what to do where that is wrong. A check whose
ground is missing is left out, and says so.
"""

import logging
from collections.abc import Callable

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from lightning_distill.config.messages import explain
from lightning_distill.errors import ConfigError
from lightning_distill.planning import doctor_checks
from lightning_distill.planning.doctor_case import Case, LeftOutError
from lightning_distill.planning.dry_run import quietly
from lightning_distill.sweeps.job import Job

log = logging.getLogger(__name__)

# In the order in which one needs another.
CHECKS: dict[str, Callable[[Case], str]] = {
    "device": doctor_checks.device,
    "tracker": doctor_checks.tracker,
    "text": doctor_checks.text,
    "targets": doctor_checks.targets,
    "tokenizers": doctor_checks.tokenizers,
    "settings": doctor_checks.settings,
    "teacher": doctor_checks.teacher,
    "alignment": doctor_checks.alignment,
    "steps": doctor_checks.steps,
    "cache": doctor_checks.cache,
    "disk": doctor_checks.disk,
    "memory": doctor_checks.memory,
}


def examine(cfg: DictConfig, job: Job) -> None:
    """Prints a line a check. Raises ConfigError if any of them fails."""
    case, console = Case(cfg, job), Console()
    failed: dict[str, str] = {}  # why, and which check found that first
    for name, check in CHECKS.items():
        mark, style = "ok", "green"
        try:
            with quietly():
                said = check(case)
        except LeftOutError as reason:
            mark, style, said = "-", "dim", f"not checked: {reason}"
        except Exception as error:
            log.debug("", exc_info=True)
            said = explain(error) or repr(error)
            mark, style = "WRONG", "bold red"
            if said in failed:
                mark, style, said = "-", "dim", f"not checked, because of {failed[said]}"
            else:
                failed[said] = name
        line = Text.assemble((f"{mark:<6}", style), f"{name:<11}", said)
        line.overflow = "fold"
        console.print(line, soft_wrap=True)
    if failed:
        count = f"{len(failed)} of {len(CHECKS)} checks failed"
        raise ConfigError(f"{count}: {', '.join(failed.values())}.")
