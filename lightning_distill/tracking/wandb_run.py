"""Start and end of a W&B run. Imports no torch."""

import logging
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_distill.errors import ConfigError
from lightning_distill.screen import ONCE, shown
from lightning_distill.tracking.wandb_environment import agent_sweep_id, has_key

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30  # seconds, after which the run goes offline
FINISH_TIMEOUT = 120  # seconds for the upload at a run's end
FINISHED = "finished"  # file in the folder of an offline run that has ended


def start(
    make_init: Callable[[], Callable[..., Any]],
    arguments: dict[str, Any],
    id_file: Path,
    of_sweep: bool = False,
) -> Any:
    """Starts a W&B run, or resumes the one whose id is in `id_file`.

    It is online with an API key, and offline without one or if the server does not respond;
    WANDB_MODE overrides both. make_init: returns `wandb.init` with the arguments of
    `logger.wandb`. arguments: further ones. of_sweep: one line on the screen stands for all runs of
    a sweep; each job's log file has its own. Raises ConfigError if `wandb.init` rejects one.
    """
    run_id = None if agent_sweep_id() else _read_or_create_id(id_file)  # an agent sets the id
    Path(arguments["dir"]).mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    init = partial(_init, make_init, arguments)
    try:
        run = init(run_id, mode)
    except Exception as error:  # W&B raises many types for a rejected key or an absent server
        if mode != "online":
            raise
        log.warning("W&B cannot be reached, so this run is logged offline: %s", error)
        run = _init_offline(init, run_id, id_file)
    run.define_metric("*", step_metric="trainer/global_step")
    _log_place(run, of_sweep)
    return run


def _log_place(run: Any, of_sweep: bool) -> None:
    if run.offline:
        runs = shown(Path(run.dir).parent.parent / "offline-run-*")
        log.info("W&B: offline; upload with `wandb sync %s`", runs, extra=ONCE)
    elif run.url and of_sweep and run.project_url:
        log.info("W&B: %s/groups/%s", run.project_url, quote(run.group, safe=""), extra=ONCE)
    elif run.url:
        log.info("W&B: %s", run.url)


def _init(
    make_init: Callable[[], Callable[..., Any]],
    arguments: dict[str, Any],
    run_id: str | None,
    mode: str,
) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT)
    # Without these, `finish` waits without end for a server that went away during the run.
    settings.finish_timeout_raises = True
    if not os.environ.get("WANDB_FINISH_TIMEOUT"):
        settings.finish_timeout = FINISH_TIMEOUT
    try:
        return make_init()(
            id=run_id,
            resume="allow",
            mode=mode,
            settings=settings,
            reinit="finish_previous",  # a failed job may have left its run open
            **arguments,
        )
    except TypeError as error:
        raise ConfigError(f"logger.wandb: {error}.") from error


def _init_offline(init: Callable[..., Any], run_id: str | None, id_file: Path) -> Any:
    """After a failed `_init`."""
    import wandb

    os.environ["WANDB_MODE"] = "offline"  # later jobs of the sweep do not try the server again
    wandb.teardown()  # W&B's background process holds the run's id while it retries
    try:
        return init(run_id, "offline")
    except Exception:  # the id is still held: take another
        if run_id is None:
            raise
        id_file.unlink(missing_ok=True)
        return init(_read_or_create_id(id_file), "offline")


def finish(run: Any, results: dict[str, Any]) -> None:
    """Writes the results to the run's summary and ends it; warns if the server is away by then."""
    run.summary.update(results)
    try:
        run.finish()
        if run.offline:
            (Path(run.dir).parent / FINISHED).touch()
    except TimeoutError:
        log.warning(
            "W&B's server does not accept the rest of this run. It is stored on disk; upload it "
            "with `wandb sync --include-online %s`",
            Path(run.dir).parent,
        )


def _read_or_create_id(file: Path) -> str:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text()
