"""The big model: trained on the labels alone, once for all who ask for the same one."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_distill.config.validation import each_teacher
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError
from lightning_distill.losses.objective import LABELS_ALONE
from lightning_distill.models import lora, pretrained
from lightning_distill.models.api_teacher import APITeacher
from lightning_distill.models.build import architecture, build_model, outline_model
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.inspection import count_parameters, max_positions
from lightning_distill.storage.artifacts import Artifact, Store, key_of
from lightning_distill.training.fit import fit, save_trained
from lightning_distill.training.module import TrainedModule

log = logging.getLogger(__name__)

# What of `trainer` changes the numbers, and not just where they are computed.
NUMERIC = ("precision", "accumulate_grad_batches", "gradient_clip_val", "matmul_precision")

# How to load a model, what its weights are known by, and the seconds of training it now.
Found = tuple[Callable[[], PreTrainedModel], str, float]


class TeacherModule(TrainedModule):
    """A model that learns from labels alone: the objective with alpha = 0."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
    ) -> None:
        super().__init__(model, vocab_size, LABELS_ALONE, optimizer, schedule)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        labels, kept = batch["labels"], batch.get("kept")
        terms = self.objective(self(batch), [], labels, details=self.logs_now, positions=kept)
        return self.step(terms)


@dataclass
class Teacher:
    """One model, or several whose probabilities are averaged by their weights."""

    load: list[Callable[[], PreTrainedModel]]
    weights: list[float]
    hash: str  # of all that decides what they predict
    seconds: float  # of training, now; 0 where they were there already
    data: DistillationData  # the text in their tokens
    served: APITeacher | None = None  # in the place of models
    device: str | None = None  # where they stay; None for where the student is

    @cached_property
    def models(self) -> list[PreTrainedModel]:
        """Loaded when they are first asked for: a run on stored predictions never does."""
        return [load() for load in self.load]

    def release(self) -> None:
        """Leaves their memory to others."""
        self.__dict__.pop("models", None)

    @property
    def positions(self) -> int | None:
        """The most tokens that all of them can read; None for no end."""
        known = [max_positions(model) for model in self.models]
        return min((count for count in known if count), default=None)

    def frozen(self, split: bool = True) -> list[Frozen]:
        count, place = self.data.num_classes, self.device
        return [Frozen(model, count, split, place) for model in self.models]


class Tracker(Protocol):
    """What logs the training of a teacher."""

    def start(
        self, folder: Path, checkpoints: Path, teacher: str | None = None
    ) -> list[Logger]: ...

    def finish(self, loggers: list[Logger], results: dict[str, Any]) -> None: ...


def obtain_teacher(
    cfg: DictConfig, store: Store, data: DistillationData, tracker: Tracker, folder: Path
) -> Teacher:
    """The teacher; trained first if it is not there, once for all who ask for the same one."""
    if "url" in cfg.teacher:
        return _served(cfg, data)

    def obtain(one: DictConfig) -> Found:
        if not one.teacher.max_steps:
            return _as_it_is(one, data)
        artifact = store.get(
            "teacher",
            _made_from(one, data),
            partial(_train, one, data, tracker, folder / "teacher"),
            True,
        )
        log.info("teacher: %s%s", artifact.folder, "" if artifact.seconds else " (reused)")
        return _trained(artifact, data)

    return _together(cfg, data, [obtain(one) for one in each_teacher(cfg)])


def find_teacher(cfg: DictConfig, store: Store, data: DistillationData) -> Teacher | None:
    """The teacher where it is there already; nothing is trained."""
    if "url" in cfg.teacher:
        return None
    found: list[Found] = []
    for one in each_teacher(cfg):
        if not one.teacher.max_steps:
            found.append(_as_it_is(one, data))
        elif artifact := store.find("teacher", _made_from(one, data)):
            found.append(_trained(artifact, data))
        else:
            return None
    return _together(cfg, data, found)


def trained_here(
    cfg: DictConfig, store: Store, data: DistillationData
) -> dict[str, Artifact | None]:
    """The teachers that this project trains, by their keys; None for those not there yet."""
    own = [one for one in each_teacher(cfg) if one.teacher.max_steps]
    wanted = [_made_from(one, data) for one in own]
    return {key_of(made_from): store.find("teacher", made_from) for made_from in wanted}


def _trained(artifact: Artifact, data: DistillationData) -> Found:
    load = partial(pretrained.saved, data.auto_class, artifact.folder)
    return load, pretrained.fingerprint(str(artifact.folder), None), artifact.seconds


def _together(cfg: DictConfig, data: DistillationData, found: list[Found]) -> Teacher:
    weights = [float(weight) for weight in cfg.teacher.get("weights") or [1.0] * len(found)]
    made_of = {"teachers": [key for _, key, _ in found], "weights": weights}
    name = key_of(made_of | {"precision": cfg.trainer.precision})  # that they compute in
    seconds = sum(seconds for *_, seconds in found)
    place = cfg.teacher.get("device")
    return Teacher([load for load, *_ in found], weights, name, seconds, data, device=place)


def _train(
    cfg: DictConfig, data: DistillationData, tracker: Tracker, logs: Path, folder: Path
) -> None:
    log.info("training the teacher: %s steps", cfg.teacher.max_steps)
    L.seed_everything(cfg.teacher.seed, verbose=False)
    model = build_model(cfg.teacher, data)
    lora.attach(model, cfg.teacher, "teacher", cfg.teacher.seed)
    module = TeacherModule(
        model,
        data.num_classes,
        instantiate(cfg.teacher.optimizer),
        instantiate(cfg.teacher.schedule),
    )
    loggers = tracker.start(logs, folder / "checkpoints", teacher=folder.stem)
    data.set_train_examples(None, cfg.teacher.seed)
    fit(cfg, module, data, cfg.teacher.max_steps, folder, loggers, "teacher")
    lora.merge(module.model)
    tracker.finish(loggers, {"parameters": count_parameters(module.model)})
    save_trained(module.model, data, folder)
    if process_group.is_rank_zero():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the weights are saved
        if (logs / "metrics.csv").exists():
            shutil.copy(logs / "metrics.csv", folder)


def _as_it_is(cfg: DictConfig, data: DistillationData) -> Found:
    """A pretrained teacher that is not trained further."""
    if "name" not in cfg.teacher:
        raise ConfigError("teacher.max_steps=0 leaves the teacher untrained; set at least 1.")
    data.check_model(outline_model(cfg.teacher, data), cfg.teacher.name)
    load = partial(build_model, cfg.teacher, data)
    known = {"weights": pretrained.fingerprint(cfg.teacher.name, cfg.teacher.revision)}
    rounded = {key: cfg.teacher.get(key) for key in ("dtype", "quantization")}
    return load, key_of(known | rounded), 0.0


def _served(cfg: DictConfig, data: DistillationData) -> Teacher:
    """A teacher behind a server, which is not asked yet."""
    if cfg.loss.temperature != 1:
        log.warning(
            "loss.temperature=%s: of a served teacher the largest probabilities are known, and at "
            "other temperatures than 1 the rest counts as spread evenly, which is biased",
            cfg.loss.temperature,
        )
    served: APITeacher = instantiate(
        architecture(cfg.teacher), tokenizer=data.tokenizer, k=cfg.transfer.k
    )
    log.info("teacher: %s at %s", served.name, served.server.url)
    key = key_of({"url": served.server.url, "name": served.name})
    return Teacher([], [1.0], key, 0.0, data, served)


def _made_from(cfg: DictConfig, data: DistillationData) -> dict[str, Any]:
    """Everything that decides what the trained teacher will be, and nothing else."""
    node = OmegaConf.to_container(cfg.teacher, resolve=True)
    assert isinstance(node, dict)
    left_out = ["members", "weights", "device"] + ["lora"] * (not lora.wanted(cfg.teacher))
    node = {key: value for key, value in node.items() if key not in left_out}
    if "name" in node:
        node["name"] = pretrained.fingerprint(node["name"], node["revision"])
    devices = Hardware.from_settings(
        {"trainer": OmegaConf.to_container(cfg.trainer, resolve=True)}
    ).num_devices
    # Each device has a stream of its own.
    streams = {"devices": devices} if cfg.data.get("streaming") and devices > 1 else {}
    return {
        "teacher": node,
        "tokens": data.artifact.key,
        "examples": data.example_settings
        | {"data.batch_size": data.batch_size * devices}
        | streams,
        "trainer": {k: cfg.trainer.get(k) for k in NUMERIC},
    }
