"""The settings as typed objects: the only place below the command line that knows their keys.

A `Run` can be made by hand as well, in a notebook for one: nothing that uses it reads the config.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_distill.config.settings import Settings, each_teacher
from lightning_distill.config.teacher_parts import number_of_layers
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed.topology import Hardware
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.losses.objective import Objective
from lightning_distill.models.gguf import obtain_folder
from lightning_distill.models.lora import LoRASettings
from lightning_distill.models.pruning import PruningSettings
from lightning_distill.models.spec import (
    ModelSpec,
    PretrainedSource,
    TeacherMember,
    TeacherSpec,
)
from lightning_distill.storage.artifacts import Store
from lightning_distill.sweeps.job_key import HARDWARE
from lightning_distill.tracking.loggers import LoggerFactory
from lightning_distill.training.model_selection import ModelSelection
from lightning_distill.training.trainer import TrainerFactory
from lightning_distill.transfer.base import Transfer

# What a role's node says of its training; the rest of it is what builds the model.
TRAINING = {
    *("max_steps", "epochs", "seed", "optimizer", "schedule", "members", "weights", "device"),
    *("initialize", "layers", "lora", "keep", "stop_after"),
}
# Callbacks that change nothing.
OBSERVERS = ("lightning_distill.planning.step_profiler.StepProfiler",)
# What of `trainer` does not change the weights of a training. Everything else counts in their key.
NO_WEIGHT_CHANGES = (
    *(*HARDWARE, "_target_", "resume", "log_every_n_steps", "gradient_checkpointing"),
    *("val_check_interval", "limit_val_batches", "limit_test_batches", "check_val_every_n_epoch"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler"),
)
# What of `trainer` is not an argument of `lightning.Trainer`.
OURS = ("compile", "gradient_checkpointing", "matmul_precision", "resume", "callbacks", "plugins")


@dataclass(frozen=True)
class Run:
    """Everything that one job needs.

    settings: for keys, trackers and the model card. make_…: a new object at each call.
    shares_vocabulary: the loss needs one vocabulary.
    """

    settings: Settings
    seed: int
    outputs: Path
    task: type[DistillationData]
    make_data: Callable[[], DistillationData]
    make_objective: Callable[[], Objective]
    make_transfer: Callable[[], Transfer]
    shares_vocabulary: bool
    teacher: TeacherSpec
    student: ModelSpec
    selection: ModelSelection
    optimizer: Callable[..., Any]
    schedule: Callable[..., Any]
    trainers: TrainerFactory
    evaluation: EvaluationRequest
    loggers: list[LoggerFactory]


def build_run(settings: Settings) -> Run:
    """Raises ConfigError, or Hydra's InstantiationException, where a node cannot be built."""
    cfg = OmegaConf.create(settings)  # whole, so that Hydra's errors name the key of a node
    store = Store(settings["paths"]["outputs"])
    teacher = _teacher(settings, store)
    return Run(
        settings=settings,
        seed=settings["seed"],
        outputs=Path(settings["paths"]["outputs"]),
        task=get_class(cfg.data._target_),
        make_data=partial(_data, cfg.data),
        make_objective=partial(_objective, cfg.loss, teacher),
        make_transfer=partial(instantiate, cfg.transfer),
        shares_vocabulary=settings["loss"].get("shared_vocabulary", True),
        teacher=teacher,
        student=_model("student", settings["student"], store),
        selection=_selection(settings["student"]),
        optimizer=instantiate(cfg.optimizer),
        schedule=instantiate(cfg.schedule),
        trainers=_trainers(settings),
        evaluation=_evaluation(settings["evaluate"]),
        loggers=[_logger(node) for node in cfg.logger.values()],
    )


def _data(node: DictConfig) -> DistillationData:
    if node.get("mixture"):  # whose sources bring what the node says is missing
        for key in [key for key in node if OmegaConf.is_missing(node, key)]:
            del node[key]
    data: DistillationData = instantiate(node)
    return data


def _objective(node: DictConfig, teacher: TeacherSpec) -> Objective:
    objective: Objective = instantiate(node)
    objective.teacher_weights = teacher.weights
    return objective


def _evaluation(node: Settings) -> EvaluationRequest:
    return EvaluationRequest(
        tuple(node["tasks"] or ()),
        None if node["task_path"] is None else str(node["task_path"]),
        node["limit"],
        node["num_fewshot"],
        node["batch_size"],
        bool(node["speed"]),
    )


def _model(role: str, node: Settings, store: Store) -> ModelSpec:
    source, lora, is_api = None, node.get("lora") or {}, "url" in node
    builds = {key: value for key, value in node.items() if key not in TRAINING}
    if path := node.get("path"):
        converted = obtain_folder(store, f"{role}.path", path, node["dtype"])
        builds["path"] = str(converted.folder)
        source = PretrainedSource(
            builds["path"],
            attn_implementation=node["attn_implementation"],
            converted_from=path,
            weights_hash=converted.key,
        )
    elif "name" in node:
        source = PretrainedSource(
            node["tokenizer"] or node["name"] if is_api else node["name"],
            node.get("revision"),
            node.get("trust_remote_code", False),
            node.get("attn_implementation"),
            is_api,
        )
    return ModelSpec(
        role,
        partial(instantiate, builds),
        node["max_steps"],
        source,
        LoRASettings(**lora) if lora.get("rank") else None,
        _pruning(node) if node.get("initialize") == "teacher_layers" else None,
        node,
        node.get("epochs"),
    )


def _selection(student: Settings) -> ModelSelection:
    return ModelSelection(student.get("keep") == "best", student.get("stop_after"))


def _pruning(node: Settings) -> PruningSettings:
    layers = "uniform" if isinstance(node["layers"], int) else node["layers"]
    return PruningSettings(
        number_of_layers(node), node["hidden_size"], node["num_attention_heads"], layers
    )


def _teacher(settings: Settings, store: Store) -> TeacherSpec:
    node = settings["teacher"]
    members = [_member(one["teacher"], store) for one in each_teacher(settings)]
    weights = node.get("weights") or [1.0] * len(members)
    return TeacherSpec(
        members,
        [float(weight) for weight in weights],
        node.get("device"),
        settings["transfer"]["k"] if "url" in node else None,
    )


def _member(node: Settings, store: Store) -> TeacherMember:
    model = _model("teacher", node, store)
    unused = {"members", "weights", "device"} | (set() if model.lora else {"lora"})
    unused |= set() if model.epochs else {"epochs"}
    return TeacherMember(
        model,
        node.get("seed", 0),
        instantiate(node["optimizer"]),
        instantiate(node["schedule"]),
        {key: value for key, value in node.items() if key not in unused},
    )


def _trainers(settings: Settings) -> TrainerFactory:
    node = settings["trainer"]
    arguments = {key: value for key, value in node.items() if key not in OURS}
    return TrainerFactory(
        # In a config, so that Hydra's errors name the key `trainer`.
        make=partial(instantiate, OmegaConf.create({"trainer": arguments}).trainer),
        hardware=Hardware.from_settings(settings),
        batch_size=settings["data"]["batch_size"],
        precision=node["precision"],
        accumulate_grad_batches=node["accumulate_grad_batches"],
        gradient_clip_val=node.get("gradient_clip_val"),
        val_check_interval=node.get("val_check_interval"),
        matmul_precision=node.get("matmul_precision", "highest"),
        compile=bool(node.get("compile")),
        gradient_checkpointing=bool(node.get("gradient_checkpointing")),
        checkpoint_every_n_steps=settings["checkpoint_every_n_steps"],
        checkpoint_every_n_minutes=settings["checkpoint_every_n_minutes"],
        max_skipped_steps=settings["max_skipped_steps"],
        callbacks=lambda: instantiate(node.get("callbacks") or []),
        plugins=lambda: instantiate(node.get("plugins") or []),
        identity=_identity(node),
    )


def _identity(trainer: Settings) -> dict[str, Any]:
    """The settings of the trainer less those that are known not to change trained weights."""
    callbacks = trainer.get("callbacks") or []
    changing = [one for one in callbacks if one["_target_"] not in OBSERVERS]
    settings = {**trainer, "callbacks": changing or None}
    return {key: value for key, value in settings.items() if key not in NO_WEIGHT_CHANGES}


def _logger(node: DictConfig) -> LoggerFactory:
    is_wandb = node["_target_"] == "wandb.init"
    tags: Any = (node.get("tags") or []) if is_wandb else []
    return LoggerFactory(
        partial(instantiate, node, _partial_=True) if is_wandb else partial(instantiate, node),
        is_wandb,
        [tags] if isinstance(tags, str) else [str(tag) for tag in tags],
    )
