"""A finished run, read from its folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.config.settings import Settings
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError
from lightning_distill.experiment.builder import build_run
from lightning_distill.experiment.preparation import prepare_data
from lightning_distill.experiment.settings import finished_run
from lightning_distill.models import pretrained
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.job_files import read_yaml
from lightning_distill.sweeps.records import JobRecord


@dataclass(frozen=True)
class FinishedRun:
    """setting: the config key that names the folder, for messages. settings: the run's resolved
    config. results: of results.json.
    """

    setting: str
    folder: Path
    settings: Settings
    results: dict[str, Any]
    task: type[DistillationData]

    @property
    def student_folder(self) -> Path:
        return self.folder / "student"

    def load_student(self) -> PreTrainedModel:
        """A new copy at each call, because a format may modify it."""
        auto_class = self.task.auto_class
        model: PreTrainedModel = pretrained.load_saved(
            auto_class, self.student_folder, self.setting
        )
        return model.eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        if not self.task.has_tokenizer:
            return None
        tokenizer: PreTrainedTokenizerBase = pretrained.load_saved(
            AutoTokenizer, self.student_folder, self.setting
        )
        return tokenizer

    def load_data(self) -> DistillationData:
        """The run's examples, in the student's tokens."""
        return prepare_data(build_run(self.settings))[0]

    @cached_property
    def choices(self) -> dict[str, str]:
        """The option of each config group; empty if Hydra's record of them is missing."""
        record = read_yaml(self.folder / ".hydra" / "hydra.yaml")
        try:
            choices = record["hydra"]["runtime"]["choices"]
        except (TypeError, KeyError):
            return {}
        return {str(group): str(choice) for group, choice in choices.items()}

    @cached_property
    def record(self) -> JobRecord | None:
        """The run, compared with the other jobs of its sweep; None outside a sweep."""
        folder = self.folder.resolve()
        sweep = next((f for f in folder.parents if (f / "multirun.yaml").exists()), None)
        jobs = compare_jobs(sweep) if sweep else []
        return next((job for job in jobs if job.folder.resolve() == folder), None)


def read_run(setting: str, folder: Path, command: Settings) -> FinishedRun:
    """command: this command's settings, see `finished_run`.

    Raises ConfigError if the folder is not that of a finished run with a student.
    """
    here = command["paths"]["outputs"], command["evaluate"], command["trainer"]
    settings, results = finished_run(setting, folder, *here)
    if not (folder / "student" / "config.json").exists():
        raise ConfigError(
            f"{setting}={folder} has no student; name a run of stage=distill, not of "
            "stage=teacher or stage=transfer."
        )
    return FinishedRun(setting, folder, settings, results, get_class(settings["data"]["_target_"]))
