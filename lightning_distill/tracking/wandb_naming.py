"""The name, group, tags and config of a W&B run. Imports no torch."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_distill.sweeps.job import Job
from lightning_distill.sweeps.job_key import is_baseline, job_key
from lightning_distill.tracking.wandb_environment import agent_sweep_id

MAX_NAME = 128  # characters that W&B allows
MAX_TAG = 64


@dataclass(frozen=True)
class RunDescription:
    """The arguments of `wandb.init` for the runs of one job.

    settings: of the `Run`. tags: of `logger.wandb.tags`.
    """

    settings: dict[str, Any]
    job: Job
    tags: list[str]

    def of_student(self) -> dict[str, Any]:
        choices, label = self.job.choices, self._label()
        seed = next(filter(_is_seed, self.job.overrides), None)
        tags = [choices["loss"], choices["transfer"]]
        tags += [f"student {choices['student']}", f"teacher {choices['teacher']}"]
        if is_baseline(self.settings):
            tags.append("baseline")
        # Jobs that differ in the seed only share `settings` and `name`; a chart can group by them.
        key_without_seed = job_key({**self.settings, "seed": 0})
        job = {"key": self.job.key, "settings": key_without_seed, "name": label}
        group = agent_sweep_id() or self.job.group
        return self._arguments("student", f"{label} {seed}" if seed else label, group, tags, job)

    def of_teacher(self, key: str) -> dict[str, Any]:
        """key: of the teacher's artifact."""
        name = f"teacher {self.job.choices['teacher']}"
        job = {"key": key, "settings": key, "name": name}
        return self._arguments("teacher", f"{name} {key[:8]}", self.job.group, [name], job)

    def _arguments(
        self, role: str, name: str, group: str, tags: list[str], job: dict[str, str]
    ) -> dict[str, Any]:
        # One folder for all runs of a sweep, because W&B's terminal viewer shows a folder.
        folder = self.job.folder.parent if self.job.is_of_sweep else self.job.folder
        # W&B's own variables; a sweep's runs need names of their own.
        if role == "student" and not self.job.is_of_sweep:
            name = os.environ.get("WANDB_NAME") or name
        tags = [*tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))]
        return {
            "job_type": role,
            "name": fit_name(name),
            "group": group_name(group),
            "tags": list(dict.fromkeys(tag[:MAX_TAG] for tag in [*tags, *self.tags])),
            "config": self.settings | {"job": job},
            "dir": str(folder),
        }

    def _label(self) -> str:
        """What distinguishes a job from the others of its sweep, besides the seed."""
        overrides = self.job.overrides
        if agent_sweep_id():
            parameters = yaml.safe_load(Path(os.environ["WANDB_SWEEP_PARAM_PATH"]).read_text())
            return short_overrides([o for o in overrides if _key(o) in parameters]) or self.job.name
        if not self.job.is_of_sweep:
            return self.job.name
        command = OverridesParser.create().parse_overrides(list(self.settings["sweep"]["command"]))
        fixed = {o.get_key_element() for o in command if not o.is_sweep_override()}
        return short_overrides([o for o in overrides if _key(o) not in fixed]) or "job"


def group_name(sweep: str) -> str:
    """The W&B group of a sweep's runs. sweep: the name of its folder."""
    return sweep[:MAX_NAME]


def fit_name(name: str) -> str:
    """Shortened to what W&B allows; the end stays, because the seed is there."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 21]}…{name[-20:]}"


def short_overrides(overrides: list[str]) -> str:
    """`loss.temperature=2 student.name=/models/gpt2 seed=1` as `temperature=2 name=gpt2`.

    A key keeps its group if another one ends in the same word: `teacher.max_steps=9`.
    """
    pairs = [o.lstrip("+~").partition("=") for o in overrides if not _is_seed(o)]
    counts = Counter([_leaf(key) for key, *_ in pairs])
    parts = []
    for key, equals, value in pairs:
        leaf = _leaf(key)
        name = leaf if counts[leaf] == 1 and leaf != "seed" else key
        # The last part of a path distinguishes models. A schedule, in braces, is not a path.
        is_node = value.startswith(("{", "["))
        parts.append(f"{name}{equals}{value if is_node else value.rstrip('/').rpartition('/')[2]}")
    return " ".join(parts)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _leaf(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[2]


def _is_seed(override: str) -> bool:
    return override.startswith("seed=")
