"""The composed config as plain, typed objects: the only place below the command line that knows
its keys.

A `Run` can be made by hand as well, in a notebook for one: nothing that uses it reads the config.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, open_dict

from lightning_distill.config.validation import each_teacher
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed.topology import Hardware
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.losses.objective import Objective
from lightning_distill.models.lora import LoRASettings
from lightning_distill.models.pruning import PruningSettings
from lightning_distill.models.spec import ModelSpec, PretrainedSource
from lightning_distill.run.settings import plain_settings
from lightning_distill.tracking.loggers import LoggerFactory
from lightning_distill.training.teacher import TeacherMember, TeacherSpec
from lightning_distill.training.trainer import TrainerFactory
from lightning_distill.transfer.base import Transfer

# What a role's node says of its training; the rest of it is what builds the model.
TRAINING = {
    *("max_steps", "seed", "optimizer", "schedule", "members", "weights", "device"),
    *("initialize", "layers", "lora"),
}
# What of `trainer` is not an argument of `lightning.Trainer`.
OURS = ("compile", "gradient_checkpointing", "matmul_precision", "resume", "callbacks", "plugins")


@dataclass(frozen=True)
class Run:
    """Everything that one job needs.

    settings: the resolved config, for keys, trackers and the model card. choices: the option of
    each config group. make_…: a new object at each call. shares_vocabulary: the loss needs one
    vocabulary.
    """

    settings: dict[str, Any]
    choices: dict[str, str]
    is_sweep: bool
    seed: int
    outputs: Path
    task: type[DistillationData]
    make_data: Callable[[], DistillationData]
    make_objective: Callable[[], Objective]
    make_transfer: Callable[[], Transfer]
    shares_vocabulary: bool
    teacher: TeacherSpec
    student: ModelSpec
    optimizer: Callable[..., Any]
    schedule: Callable[..., Any]
    trainers: TrainerFactory
    evaluation: EvaluationRequest
    loggers: list[LoggerFactory]


def build_run(cfg: DictConfig) -> Run:
    """Raises ConfigError, or Hydra's InstantiationException, where a node cannot be built."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    settings = plain_settings(cfg)
    return Run(
        settings=settings,
        choices={k: str(v) for k, v in hydra.runtime.choices.items()} if hydra else {},
        is_sweep=hydra is not None and hydra.mode == RunMode.MULTIRUN,
        seed=cfg.seed,
        outputs=Path(cfg.paths.outputs),
        task=get_class(cfg.data._target_),
        make_data=partial(instantiate, cfg.data),
        make_objective=partial(instantiate, cfg.loss),
        make_transfer=partial(instantiate, cfg.transfer),
        shares_vocabulary=cfg.loss.get("shared_vocabulary", True),
        teacher=_teacher(cfg),
        student=_model("student", cfg.student),
        optimizer=instantiate(cfg.optimizer),
        schedule=instantiate(cfg.schedule),
        trainers=_trainers(cfg, Hardware.from_settings(settings)),
        evaluation=_evaluation(cfg.evaluate),
        loggers=[_logger(node) for node in cfg.logger.values()],
    )


def _evaluation(node: DictConfig) -> EvaluationRequest:
    return EvaluationRequest(
        tuple(node.tasks or ()),
        None if node.task_path is None else str(node.task_path),
        node.limit,
        node.num_fewshot,
        node.batch_size,
        bool(node.speed),
    )


def _model(role: str, node: DictConfig) -> ModelSpec:
    settings = plain_settings(node)
    source, lora, is_api = None, settings.get("lora") or {}, "url" in settings
    if "name" in settings:
        name = settings["tokenizer"] or settings["name"] if is_api else settings["name"]
        source = PretrainedSource(
            name,
            settings.get("revision"),
            settings.get("trust_remote_code", False),
            settings.get("attn_implementation"),
            is_api,
        )
    return ModelSpec(
        role,
        partial(instantiate, {k: v for k, v in settings.items() if k not in TRAINING}),
        settings["max_steps"],
        source,
        LoRASettings(**lora) if lora.get("rank") else None,
        _pruning(settings) if settings.get("initialize") == "teacher_layers" else None,
        settings,
    )


def _pruning(settings: dict[str, Any]) -> PruningSettings:
    return PruningSettings(
        settings["num_hidden_layers"],
        settings["hidden_size"],
        settings["num_attention_heads"],
        settings["layers"],
    )


def _teacher(cfg: DictConfig) -> TeacherSpec:
    members = [_member(one.teacher) for one in each_teacher(cfg)]
    weights = cfg.teacher.get("weights") or [1.0] * len(members)
    return TeacherSpec(
        members,
        [float(weight) for weight in weights],
        cfg.teacher.get("device"),
        cfg.transfer.k if "url" in cfg.teacher else None,
    )


def _member(node: DictConfig) -> TeacherMember:
    model = _model("teacher", node)
    unused = {"members", "weights", "device"} | (set() if model.lora else {"lora"})
    settings = {key: value for key, value in model.settings.items() if key not in unused}
    return TeacherMember(
        model,
        node.seed if "seed" in node else 0,
        instantiate(node.optimizer),
        instantiate(node.schedule),
        settings,
    )


def _trainers(cfg: DictConfig, hardware: Hardware) -> TrainerFactory:
    node = cfg.trainer
    arguments = cfg.copy()  # whole, so that Hydra's errors name the key `trainer`
    with open_dict(arguments):
        for key in OURS:
            arguments.trainer.pop(key, None)
    return TrainerFactory(
        make=partial(instantiate, arguments.trainer),
        hardware=hardware,
        batch_size=cfg.data.batch_size,
        precision=node.precision,
        accumulate_grad_batches=node.accumulate_grad_batches,
        gradient_clip_val=node.get("gradient_clip_val"),
        val_check_interval=node.get("val_check_interval"),
        matmul_precision=node.get("matmul_precision", "highest"),
        compile=bool(node.get("compile")),
        gradient_checkpointing=bool(node.get("gradient_checkpointing")),
        checkpoint_every_n_steps=cfg.checkpoint_every_n_steps,
        checkpoint_every_n_minutes=cfg.checkpoint_every_n_minutes,
        max_skipped_steps=cfg.max_skipped_steps,
        callbacks=lambda: instantiate(node.get("callbacks") or []),
        plugins=lambda: instantiate(node.get("plugins") or []),
    )


def _logger(node: DictConfig) -> LoggerFactory:
    is_wandb = node["_target_"] == "wandb.init"
    tags: Any = (node.get("tags") or []) if is_wandb else []
    return LoggerFactory(
        partial(instantiate, node, _partial_=True) if is_wandb else partial(instantiate, node),
        is_wandb,
        [tags] if isinstance(tags, str) else [str(tag) for tag in tags],
    )
