"""The big model: trained on the text itself, once for all who ask for the same one."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_distill import ConfigError, models
from lightning_distill.artifacts import Store
from lightning_distill.dashboard import finish_loggers, start_loggers
from lightning_distill.data import DataModule
from lightning_distill.losses import Objective, forward_kl
from lightning_distill.models import pretrained
from lightning_distill.results import Job
from lightning_distill.training import LanguageModule, fit

log = logging.getLogger(__name__)

# What of `trainer` changes the numbers, and not just where they are computed.
NUMERIC = ("precision", "accumulate_grad_batches", "gradient_clip_val")


class TeacherModule(LanguageModule):
    """A language model that learns from labels alone: the objective with alpha = 0."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
    ) -> None:
        labels_only = Objective(
            forward_kl,
            temperature=1.0,
            alpha=0.0,
            hard_weight=1.0,
            hard_target="labels",
            vocab_size=vocab_size,
        )
        super().__init__(model, labels_only, optimizer, schedule)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self.step(self(batch), None, batch["labels"])


@dataclass(frozen=True)
class Teacher:
    model: PreTrainedModel
    hash: str  # of its weights, or of all that they were made from
    seconds: float  # of training, now; 0 where it was there already


def obtain_teacher(cfg: DictConfig, store: Store, data: DataModule, job: Job) -> Teacher:
    """Loads the teacher; trains it first, once for all who ask for the same one."""
    if not cfg.teacher.max_steps:
        return _as_it_is(cfg, data)
    made_from = _made_from(cfg, data)

    def make(folder: Path) -> None:
        log.info("training the teacher: %s steps", cfg.teacher.max_steps)
        L.seed_everything(cfg.teacher.seed, verbose=False)
        module = TeacherModule(
            models.build(cfg.teacher, data.tokenizer, data.sequence_length),
            len(data.tokenizer),
            instantiate(cfg.teacher.optimizer),
            instantiate(cfg.teacher.schedule),
        )
        logs = job.folder / "teacher"
        loggers = start_loggers(cfg, "teacher", logs, f"teacher {folder.stem}", job.group)
        data.train_on(None, cfg.teacher.seed)
        fit(cfg, module, data, cfg.teacher.max_steps, folder, loggers, "teacher")
        finish_loggers(loggers, {"parameters": models.count_parameters(module.model)})
        data.save(module.model, folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the weights are saved
        if (logs / "metrics.csv").exists():
            shutil.copy(logs / "metrics.csv", folder)

    artifact = store.get("teacher", made_from, make)
    log.info("teacher: %s%s", artifact.folder, "" if artifact.seconds else " (reused)")
    model = AutoModelForCausalLM.from_pretrained(artifact.folder)
    return Teacher(model, artifact.key, artifact.seconds)


def find_teacher(cfg: DictConfig, store: Store, data: DataModule) -> Teacher | None:
    """The teacher where it is there already; nothing is trained."""
    if not cfg.teacher.max_steps:
        return _as_it_is(cfg, data)
    artifact = store.find("teacher", _made_from(cfg, data))
    if artifact is None:
        return None
    return Teacher(AutoModelForCausalLM.from_pretrained(artifact.folder), artifact.key, 0.0)


def _as_it_is(cfg: DictConfig, data: DataModule) -> Teacher:
    """A pretrained teacher that is not trained further."""
    if "name" not in cfg.teacher:
        raise ConfigError("teacher.max_steps=0 leaves the teacher untrained; set at least 1.")
    weights = pretrained.fingerprint(cfg.teacher.name, cfg.teacher.revision)
    return Teacher(models.build(cfg.teacher, data.tokenizer, data.sequence_length), weights, 0.0)


def _made_from(cfg: DictConfig, data: DataModule) -> dict[str, Any]:
    """Everything that decides what the trained teacher will be, and nothing else."""
    node = OmegaConf.to_container(cfg.teacher, resolve=True)
    assert isinstance(node, dict)
    if "name" in node:
        node["name"] = pretrained.fingerprint(node["name"], node["revision"])
    return {
        "teacher": node,
        "tokens": data.artifact.key,
        "blocks": [data.sequence_length, data.batch_size, data.isolate_documents],
        "trainer": {k: cfg.trainer[k] for k in NUMERIC},
    }
