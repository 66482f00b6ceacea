"""The teacher: trained on labels, once for all jobs that ask for the same one, or pretrained."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.losses.objective import LABELS_ALONE
from lightning_distill.models import lora, pretrained
from lightning_distill.models.api_teacher import APITeacher
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.inspection import count_parameters, max_positions
from lightning_distill.models.spec import ModelSpec, TeacherMember, TeacherSpec
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import Artifact, Store, key_of
from lightning_distill.training.fit import fit, save_trained
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.trainer import TrainerFactory

log = logging.getLogger(__name__)


class TeacherModule(TrainedModule):
    """A model that is trained on labels: the objective with alpha = 0.

        L.Trainer(max_epochs=1).fit(TeacherModule(model), datamodule)

    Arguments, and what a batch holds: see `TrainedModule`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Callable[..., Any] | None = None,
        vocab_size: int | None = None,
        shifted_labels: bool = False,
    ) -> None:
        super().__init__(model, LABELS_ALONE, optimizer, schedule, vocab_size, shifted_labels)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        labels, kept = batch["labels"], batch.get("kept")
        terms = self.objective.terms(self(batch), [], labels, details=self.logs_now, positions=kept)
        return self.step(terms)


@dataclass
class Teacher:
    """One model, or several whose probabilities are averaged by their weights.

    load: loads each model. hash: of everything that decides their predictions. seconds: of
    training in this job; 0 where they existed. data: the examples in their tokens. api: asks a
    server, and stands in place of models.
    """

    load: list[Callable[[], PreTrainedModel]]
    weights: list[float]
    hash: str
    seconds: float
    data: DistillationData
    api: APITeacher | None = None
    device: str | None = None

    @cached_property
    def models(self) -> list[PreTrainedModel]:
        """Loaded at the first access; a run on cached predictions never needs them."""
        return [load() for load in self.load]

    def release(self) -> None:
        """Frees the models' memory; they are loaded again when needed."""
        self.__dict__.pop("models", None)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that all of them take; None for no limit."""
        limits = [max_positions(model) for model in self.models]
        return min((limit for limit in limits if limit), default=None)

    def frozen(self, split: bool = True) -> list[Frozen]:
        """split: whether the output head is applied in chunks, by the loss."""
        count = self.data.num_classes
        return [Frozen(model, count, split, self.device) for model in self.models]


class Tracker(Protocol):
    """What logs the training of a teacher."""

    def start(
        self, folder: Path, checkpoints: Path, teacher: str | None = None
    ) -> list[Logger]: ...

    def finish(self, loggers: list[Logger], results: dict[str, Any]) -> None: ...


# How to load a model, the hash of its weights, and the seconds of training it in this job.
Obtained = tuple[Callable[[], PreTrainedModel], str, float]


def obtain_teacher(
    spec: TeacherSpec,
    trainers: TrainerFactory,
    store: Store,
    data: DistillationData,
    tracker: Tracker,
    logs: Path,
) -> Teacher:
    """The teacher; trained first where it does not exist. logs: the folder for its curves."""
    if spec.is_api:
        return api_teacher(spec, data)

    def obtain(member: TeacherMember) -> Obtained:
        if not member.is_trained:
            return _as_it_is(member.model, data)
        train = partial(_train, member, trainers, data, tracker, logs)
        artifact = store.get("teacher", made_from(member, trainers, data), train, on_all_ranks=True)
        reused = "" if artifact.seconds else " (reused)"
        log.info("teacher: %s%s", shown(artifact.folder), reused)
        return _trained(artifact, data)

    return _combine(spec, trainers, data, [obtain(member) for member in spec.members])


def find_teacher(
    spec: TeacherSpec, trainers: TrainerFactory, store: Store, data: DistillationData
) -> Teacher | None:
    """The teacher where it exists; nothing is trained. None also for one behind a server."""
    if spec.is_api:
        return None
    obtained: list[Obtained] = []
    for member in spec.members:
        if not member.is_trained:
            obtained.append(_as_it_is(member.model, data))
        elif artifact := store.find("teacher", made_from(member, trainers, data)):
            obtained.append(_trained(artifact, data))
        else:
            return None
    return _combine(spec, trainers, data, obtained)


def trained_teachers(
    spec: TeacherSpec, trainers: TrainerFactory, store: Store, data: DistillationData
) -> dict[str, Artifact | None]:
    """The artifacts of the teachers that we train, by key; None for those not trained yet."""
    wanted = [made_from(member, trainers, data) for member in spec.members if member.is_trained]
    return {key_of(one): store.find("teacher", one) for one in wanted}


def made_from(
    member: TeacherMember, trainers: TrainerFactory, data: DistillationData
) -> dict[str, Any]:
    """Everything that decides the weights of a trained teacher, and nothing else."""
    settings, source = dict(member.settings), member.model.source
    if source:
        settings.pop("path", None)
        settings["name"] = source.fingerprint
    devices = trainers.hardware.num_devices
    # Each device reads a part of a stream.
    streams = {"devices": devices} if data.is_streaming and devices > 1 else {}
    return {
        "teacher": settings,
        "tokens": data.artifact.key,
        "examples": data.example_settings
        | {"data.batch_size": data.batch_size * devices}
        | streams,
        "trainer": trainers.identity,
    }


def _train(
    member: TeacherMember,
    trainers: TrainerFactory,
    data: DistillationData,
    tracker: Tracker,
    logs: Path,
    folder: Path,
) -> dict[str, Any]:
    spec = member.model
    steps = spec.steps(data.examples("train"), trainers.examples_per_step)
    log.info("training the teacher: %s steps", steps)
    L.seed_everything(member.seed, verbose=False)
    model = spec.build(data)
    lora.attach(model, spec.lora, "teacher", member.seed)
    module = TeacherModule(
        model, member.optimizer, member.schedule, data.num_classes, shifted_labels=True
    )
    loggers = tracker.start(logs, folder / "checkpoints", teacher=folder.stem)
    data.set_train_examples(None, member.seed)
    training = fit(trainers, module, data, steps, folder, loggers, "teacher")
    lora.merge(module.model)
    tracker.finish(loggers, {"parameters": count_parameters(module.model)})
    save_trained(module.model, data, folder)
    if process_group.is_rank_zero():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if (logs / "metrics.csv").exists():
            shutil.copy(logs / "metrics.csv", folder)
    return {"training": asdict(training)}


def _trained(artifact: Artifact, data: DistillationData) -> Obtained:
    load = partial(pretrained.load_saved, data.auto_class, artifact.folder)
    return load, pretrained.fingerprint(str(artifact.folder), None), artifact.seconds


def _as_it_is(spec: ModelSpec, data: DistillationData) -> Obtained:
    """A pretrained teacher that is not trained further."""
    source = spec.source
    if source is None:
        raise ConfigError("teacher.max_steps=0 leaves the teacher untrained; set at least 1.")
    data.check_model(spec.outline(data), spec.name)
    return partial(spec.build, data), spec.loaded_key, 0.0


def _combine(
    spec: TeacherSpec, trainers: TrainerFactory, data: DistillationData, obtained: list[Obtained]
) -> Teacher:
    hashes = [weights_hash for _, weights_hash, _ in obtained]
    content = {"teachers": hashes, "weights": spec.weights, "precision": trainers.precision}
    load, seconds = [load for load, *_ in obtained], sum(seconds for *_, seconds in obtained)
    return Teacher(load, spec.weights, key_of(content), seconds, data, device=spec.device)


def api_teacher(spec: TeacherSpec, data: DistillationData) -> Teacher:
    """A teacher behind a server, which is not called yet."""
    api: APITeacher = spec.members[0].model.make(tokenizer=data.tokenizer, k=spec.api_k)
    log.info("teacher: %s at %s", api.name, api.client.url)
    key = key_of({"url": api.client.url, "name": api.name})
    return Teacher([], [1.0], key, 0.0, data, api)
