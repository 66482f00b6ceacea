"""The command from Python: runs, sweeps and configs, as `lightning-distill` makes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_distill.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame


class Results(SimpleNamespace):
    """A run's results.json as attributes, and `folder`, where it is.

    status: `finished`, `failed` or `not run`.
    teacher, student: their scores, such as `results.student.nll`.
    cost: seconds and memory.
    Other attributes are the other keys of the file, such as `key`, `seed` and `overrides`. None for
    what the run does not have.
    """

    folder: Path
    status: str | None
    teacher: Any
    student: Any
    cost: Any

    def __init__(self, folder: Path) -> None:
        file, content = folder / "results.json", SimpleNamespace()
        if file.exists():  # a plan, for example, has none
            text = file.read_text(encoding="utf-8")
            content = json.loads(text, object_hook=lambda node: SimpleNamespace(**node))
        names = ("status", "key", "seed", "overrides", "teacher", "student", "cost")
        absent = dict.fromkeys(names)
        super().__init__(**{**absent, **vars(content)})
        self.folder = folder

    @property
    def student_folder(self) -> Path:
        """The trained student, which `from_pretrained` of transformers loads."""
        return self.folder / "student"


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, with results.csv and report.html."""

    folder: Path

    @cached_property
    def jobs(self) -> list[Results]:
        """In the order of their folders' names, those that failed included."""
        return [Results(file.parent) for file in sorted(self.folder.rglob("results.json"))]

    def to_pandas(self) -> "DataFrame":
        """results.csv: a row a job, its settings and its scores."""
        import pandas

        return pandas.read_csv(self.folder / "results.csv")


def run(overrides: Sequence[str] = ()) -> Results:
    """What `lightning-distill [overrides]` does, for one run; `stage=` as well.

    overrides: as on the command line, one a text: `["student=xs", "loss.temperature=2"]`.
    Raises ConfigError for a mistake in the overrides, with the message of the command.
    """
    if any(one in ("-m", "--multirun") for one in overrides):
        raise ConfigError("-m is a sweep: call lightning_distill.sweep.")
    return Results(_call(overrides))


def sweep(overrides: Sequence[str] = ()) -> Sweep:
    """What `lightning-distill -m [overrides]` does.

    overrides: as on the command line, one a text: `["student=xs,s", "loss.alpha=0,1"]`.
    A job that fails has `status == "failed"`, and the others are run. Raises ConfigError for a
    mistake that all jobs share.
    """
    return Sweep(_call(["--multirun", *overrides]))


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of `lightning-distill [overrides]`, as `--cfg job` prints it.

    Raises ConfigError for a mistake in the overrides.
    """
    from hydra import compose as compose_config
    from hydra import initialize_config_dir

    from lightning_distill.cli import app  # noqa: F401 - registers resolvers and checks
    from lightning_distill.config.catalog import CONF
    from lightning_distill.config.messages import explain

    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose_config("config", list(overrides))
        except Exception as error:
            if reason := explain(error):
                raise ConfigError(reason) from error
            raise


def _call(arguments: Sequence[str]) -> Path:
    from lightning_distill.cli.app import call

    return call(list(arguments))
