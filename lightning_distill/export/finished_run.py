"""A finished run, as its folder tells of it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.tasks.base import DistillationData, task_class
from lightning_distill.errors import ConfigError
from lightning_distill.export import task
from lightning_distill.run.builder import build_run
from lightning_distill.run.preparation import prepare_data
from lightning_distill.run.settings import finished_run
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.records import JobRecord


@dataclass(frozen=True)
class Run:
    """cfg: its own settings, with `paths.outputs` of the export's."""

    folder: Path
    cfg: DictConfig
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, outputs: str) -> "Run":
        """Raises ConfigError where the folder is no finished run with a student."""
        cfg, results = finished_run("export.run", folder)
        if not (folder / "student" / "config.json").exists():
            raise ConfigError(
                f"export.run={folder} has no student, as runs of stage=teacher and stage=transfer "
                "have none."
            )
        cfg.paths.outputs = outputs
        return cls(folder, cfg, results)

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def task(self) -> type[DistillationData]:
        return task_class(self.cfg.data._target_)

    def load(self) -> PreTrainedModel:
        """Anew at each call, so that what a format does to it reaches no other."""
        return task.load(self.task, self.student)

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        return task.load_tokenizer(self.task, self.student)

    @cached_property
    def data(self) -> DistillationData:
        """In the student's tokens."""
        return prepare_data(build_run(self.cfg))[0]

    @cached_property
    def choices(self) -> dict[str, str]:
        """What was chosen of each group of `conf/`, where Hydra's note of it is there."""
        try:
            noted = OmegaConf.load(self.folder / ".hydra" / "hydra.yaml")
        except OSError:
            return {}
        found = OmegaConf.select(noted, "hydra.runtime.choices") or {}
        return {str(group): str(choice) for group, choice in found.items()}

    @cached_property
    def row(self) -> JobRecord | None:
        """The run beside the other jobs of its sweep; None for a run of its own."""
        here = self.folder.resolve()
        sweep = next((f for f in here.parents if (f / "multirun.yaml").exists()), None)
        rows = compare_jobs(sweep) if sweep else []
        return next((row for row in rows if row.folder.resolve() == here), None)
