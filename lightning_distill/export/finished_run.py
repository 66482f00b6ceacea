"""A finished run, read from its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.models import pretrained
from lightning_distill.sweeps.comparison import compare_jobs
from lightning_distill.sweeps.records import JobRecord, read_yaml


@dataclass(frozen=True)
class FinishedRun:
    """settings: the run's resolved config. results: of results.json.
    load_data: returns the run's examples in the student's tokens.
    """

    folder: Path
    settings: dict[str, Any]
    results: dict[str, Any]
    task: type[DistillationData]
    load_data: Callable[[], DistillationData]

    @property
    def student_folder(self) -> Path:
        return self.folder / "student"

    def load_student(self) -> PreTrainedModel:
        """A new copy at each call, because a format may modify it."""
        auto_class = self.task.auto_class
        model: PreTrainedModel = pretrained.load_saved(
            auto_class, self.student_folder, "export.run"
        )
        return model.eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        if not self.task.has_tokenizer:
            return None
        tokenizer: PreTrainedTokenizerBase = pretrained.load_saved(
            AutoTokenizer, self.student_folder, "export.run"
        )
        return tokenizer

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
