"""`stage=doctor`: whether a command would work, checked before it runs.

It prints one line for each check: what was found, what to do, or why the check was skipped.
"""

import logging

from rich.console import Console
from rich.text import Text

from lightning_distill.config.messages import explain
from lightning_distill.config.settings import Settings
from lightning_distill.errors import ConfigError
from lightning_distill.planning.doctor_checks import CHECKS
from lightning_distill.planning.doctor_context import Context, SkippedError
from lightning_distill.planning.dry_run import quiet
from lightning_distill.sweeps.job import Job

log = logging.getLogger(__name__)

STYLES = {"ok": "green", "WRONG": "bold red", "-": "dim"}


def examine(settings: Settings, job: Job) -> None:
    """Prints a line for each check. Raises ConfigError if one fails."""
    context, console = Context(settings, job), Console()
    failed: dict[str, str] = {}  # from a message to the first check that failed with it
    for check in CHECKS:
        mark = "ok"
        try:
            with quiet(), console.status(f"checking {check.name}"):
                message = check.function(context)
        except SkippedError as reason:
            mark, message = "-", f"not checked: {reason}"
        except Exception as error:
            log.debug("", exc_info=True)
            mark, message = "WRONG", explain(error) or repr(error)
            if message in failed:
                mark, message = "-", f"not checked, because of {failed[message]}"
            else:
                failed[message] = check.name
        line = Text.assemble((f"{mark:<6}", STYLES[mark]), f"{check.name:<11}", message)
        line.overflow = "fold"
        console.print(line, soft_wrap=True)
    if failed:
        count = f"{len(failed)} of {len(CHECKS)} checks failed"
        raise ConfigError(f"{count}: {', '.join(failed.values())}.")
