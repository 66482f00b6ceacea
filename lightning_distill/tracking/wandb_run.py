"""A run in W&B: what it is called and grouped by, and how it starts. Nothing here needs torch."""

import logging
import netrc
import os
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_distill.errors import ConfigError
from lightning_distill.sweeps.job import Job
from lightning_distill.sweeps.job_key import is_baseline, job_key

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30  # seconds that W&B's server may take to answer before the run goes offline
FINISH_TIMEOUT = 120  # seconds that the upload of what is left may take at a run's end
ANSWER = 20  # seconds that it may take to say that it is there
FINISHED = "finished"  # file in the folder of an offline run to which nothing will be added
LONGEST_NAME = 128  # characters that W&B allows
LONGEST_TAG = 64


@dataclass(frozen=True)
class Description:
    """What `wandb.init` gets for the runs of one job.

    settings: the resolved config. choices: the option of each config group. tags: the user's.
    """

    settings: dict[str, Any]
    choices: dict[str, str]
    is_sweep: bool
    job: Job
    tags: list[str]

    def student(self) -> dict[str, Any]:
        choices, job = self.choices, self.job
        label, seed = self._label(), _seed(job.overrides)
        tags = [choices["loss"], choices["transfer"]]
        tags += [f"student {choices['student']}", f"teacher {choices['teacher']}"]
        if is_baseline(self.settings):
            tags.append("baseline")
        # The seeds of one job share `settings` and `name`, by which a chart can group them.
        key_of_seeds = job_key({**self.settings, "seed": 0})
        known = {"key": job.key, "settings": key_of_seeds, "name": label}
        return {
            "job_type": "student",
            "name": _cut(f"{label} {seed}" if seed else label),
            "group": group_name(_agents_sweep() or job.group),
            "tags": self._all_tags(tags),
            "config": self.settings | {"job": known},
            "dir": str(self._directory),
        }

    def teacher(self, key: str) -> dict[str, Any]:
        """key: of the artifact that the teacher will be."""
        name = f"teacher {self.choices['teacher']}"
        return {
            "job_type": "teacher",
            "name": _cut(f"{name} {key[:8]}"),
            "group": group_name(self.job.group),
            "tags": self._all_tags([name]),
            "config": self.settings | {"job": {"key": key, "settings": key, "name": name}},
            "dir": str(self._directory),
        }

    def _label(self) -> str:
        """What distinguishes a job from the others of its sweep, its seed aside."""
        if _agents_sweep():
            parameters = yaml.safe_load(Path(os.environ["WANDB_SWEEP_PARAM_PATH"]).read_text())
            return short([o for o in self.job.overrides if _key(o) in parameters]) or self.job.name
        if not self.is_sweep:
            return self.job.name
        command = OverridesParser.create().parse_overrides(list(self.settings["sweep"]["command"]))
        fixed = {o.get_key_element() for o in command if not o.is_sweep_override()}
        return short([o for o in self.job.overrides if _key(o) not in fixed]) or "job"

    def _all_tags(self, tags: list[str]) -> list[str]:
        return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in [*tags, *self.tags]))

    @property
    def _directory(self) -> Path:
        """One folder for all runs of a sweep: W&B's terminal viewer then shows them together."""
        return self.job.folder.parent if self.is_sweep else self.job.folder


def start(make: Callable[[], Callable[..., Any]], described: dict[str, Any], id_file: Path) -> Any:
    """Starts the run that `logger.wandb` asks for: online with a key, offline without one or
    where the server cannot be reached. A run whose id is in this file goes on."""
    import wandb

    # An agent has made its run on the server already.
    run_id = None if _agents_sweep() else kept(id_file)

    def begin(mode: str) -> Any:
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT)
        # At its end a run would wait for ever for a server that has gone away meanwhile.
        settings.finish_timeout_raises = True
        if not os.environ.get("WANDB_FINISH_TIMEOUT"):
            settings.finish_timeout = FINISH_TIMEOUT
        try:
            return make()(
                id=run_id,
                resume="allow",
                mode=mode,
                settings=settings,
                reinit="finish_previous",  # a job that failed may have left its run open
                **described,
            )
        except TypeError as error:
            raise ConfigError(f"logger.wandb: {error}.") from error

    Path(described["dir"]).mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    try:
        run = begin(mode)
    except Exception as error:  # a refused key, a server that is away: of many kinds
        if mode != "online":
            raise
        log.warning("W&B cannot be reached, so this run is logged offline: %s", error)
        os.environ["WANDB_MODE"] = "offline"  # later jobs of a sweep need not ask again
        wandb.teardown()  # its process still holds the run's id, trying
        try:
            run = begin("offline")
        except Exception:  # where it has not let go of it
            if run_id is None:
                raise
            id_file.unlink(missing_ok=True)
            run_id = kept(id_file)
            run = begin("offline")
    run.define_metric("*", step_metric="trainer/global_step")
    if run.offline:
        log.info("W&B: offline; upload with `wandb sync %s`", Path(run.dir).parent)
    elif run.url:
        log.info("W&B: %s", run.url)
    return run


def finish(run: Any, results: dict[str, Any]) -> None:
    """Ends a run with its final numbers. A server that is gone by now costs no job its results."""
    run.summary.update(results)
    try:
        run.finish()
        if run.offline:
            (Path(run.dir).parent / FINISHED).touch()
    except TimeoutError:
        log.warning(
            "W&B's server does not take what is left of this run; it is kept, and can be uploaded "
            "later with `wandb sync --include-online %s`", Path(run.dir).parent,
        )  # fmt: skip


def skips_teacher() -> bool:
    """Under `wandb agent` a process has one run, which is the student's."""
    return _agents_sweep() is not None


def kept(file: Path) -> str:
    """A name for a tracked run: the file's, or a new one that is written there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text()


def server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(server()).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_server() -> None:
    """Raises ConfigError where W&B's server is away."""
    url = server()
    try:
        urlopen(url, timeout=ANSWER)
    except HTTPError:
        return  # it is there, whatever it thinks of the address
    except (OSError, ValueError) as error:  # ValueError: the address is none
        reason = getattr(error, "reason", error)
        raise ConfigError(f"W&B's server {url} does not answer: {reason}.") from error


def group_name(sweep: str) -> str:
    """A sweep's folder as a group of W&B's."""
    return sweep[:LONGEST_NAME]


def short(overrides: list[str]) -> str:
    """`loss.temperature=2 student.name=/models/gpt2` as `temperature=2 name=gpt2`, no seed.

    A key that would be mistaken for another keeps its group: `teacher.max_steps=9`.
    """
    pairs = [o.lstrip("+~").partition("=") for o in overrides if _seed([o]) is None]
    leaves = Counter([_leaf(key) for key, *_ in pairs])
    named = []
    for key, equals, value in pairs:
        leaf = _leaf(key)
        name = leaf if leaves[leaf] == 1 and leaf != "seed" else key
        # The last part of a path tells models apart; a schedule in braces stays whole.
        told = value if value.startswith(("{", "[")) else value.rstrip("/").rpartition("/")[2]
        named.append(f"{name}{equals}{told}")
    return " ".join(named)


def _cut(name: str) -> str:
    """Short enough for W&B; the seed, which is last, stays."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 21]}…{name[-20:]}"


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _leaf(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[2]


def _seed(overrides: list[str]) -> str | None:
    return next((o for o in overrides if o.startswith("seed=")), None)


def _agents_sweep() -> str | None:
    """The id of the sweep that `wandb agent` runs this process for."""
    return os.environ.get("WANDB_SWEEP_ID")
