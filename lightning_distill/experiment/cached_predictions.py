"""The cache of `transfer=cached`, for loops of one's own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from lightning_distill.errors import ConfigError
from lightning_distill.experiment.builder import Run, build_run
from lightning_distill.experiment.preparation import prepare_data
from lightning_distill.experiment.settings import finished_run
from lightning_distill.losses.distributions import Sparse
from lightning_distill.models.predictions import Predictions
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.teacher import Teacher, api_teacher, find_teacher
from lightning_distill.transfer.cached import Cached


class CachedPredictions(Dataset[dict[str, Any]]):
    """The transfer set of a run with `transfer=cached`, and the teacher's stored predictions on it.

        cache = CachedPredictions(run(["stage=transfer", "transfer=cached"]).folder)
        for batch in DataLoader(cache, batch_size=8, shuffle=True, collate_fn=cache.collate):
            logits = student(input_ids=batch["input_ids"]).logits
            loss, terms = objective(logits, batch["teacher"], batch["labels"], shifted_labels=True)

    folder: of a finished run, of `stage=transfer` or with a student.
    vocab_size: V, the number of tokens or classes that a prediction chooses among.
    teacher_weights: of several teachers, for `objective.teacher_weights`.
    tokenizer: of the tokens; None for images.

    Raises ConfigError where the folder is not that of such a run, or its cache is gone or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        settings, _ = finished_run("folder", folder, str(_outputs_of(folder)))
        run = build_run(settings)
        transfer = run.make_transfer()
        if not isinstance(transfer, Cached):
            raise ConfigError(f"{folder} is not of a run with transfer=cached: it has no cache.")
        data, teacher_data = prepare_data(run)
        teacher = _teacher(run, teacher_data)
        if teacher is None or not transfer.find(data, teacher, Store(run.outputs)):
            raise ConfigError(f"{folder}: its cache or its teacher is gone. Run its command again.")
        self._examples: Any = transfer.dataset(data)
        self._codec = transfer.codec
        self.vocab_size = data.num_classes
        self.teacher_weights = tuple(teacher.weights)
        self.tokenizer = data.tokenizer if data.has_tokenizer else None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The tensors of an example, and `teacher`.

        input_ids: [T], and others that the model reads, such as position_ids.
        labels: [T], labels[t] is what is predicted at t; -100 where nothing is. A classifier's
            is [].
        teacher: `Predictions` of each teacher [T, ...] with `transfer.stored=hidden`, else `Sparse`
            [T, K].
        """
        example = dict(self._examples[range(len(self))[index]])
        stored = example.pop("stored")
        example.pop("block", None)
        return {**example, "teacher": self._codec.decode(stored)}

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch [B, T, ...] of examples, for a DataLoader."""
        tensors = [{k: v for k, v in one.items() if k != "teacher"} for one in examples]
        teachers = [one["teacher"] for one in examples]
        return {**default_collate(tensors), "teacher": _stacked(teachers)}


def _stacked(teachers: list[Any]) -> list[Predictions] | Sparse:
    first = teachers[0]
    if isinstance(first, Sparse):
        inverse = None if first.inverse is None else torch.stack([x.inverse for x in teachers])
        return Sparse(
            torch.stack([one.ids for one in teachers]),
            torch.stack([one.log_p for one in teachers]),
            {T: torch.stack([one.log_z[T] for one in teachers]) for T in first.log_z},
            inverse,
        )
    by_teacher = zip(*teachers, strict=True)
    return [replace(one[0], states=torch.stack([x.states for x in one])) for one in by_teacher]


def _outputs_of(folder: Path) -> Path:
    """The folder with the artifacts, above that of the run."""
    for parent in folder.resolve().parents:
        if (parent / "artifacts").is_dir():
            return parent
    raise ConfigError(f"{folder} is not below a folder of results: none above it has artifacts/.")


def _teacher(run: Run, data: Any) -> Teacher | None:
    """What the cache's key needs of the teacher; no model is loaded."""
    if run.teacher.is_api:
        return api_teacher(run.teacher, data)
    return find_teacher(run.teacher, run.trainers, Store(run.outputs), data)
