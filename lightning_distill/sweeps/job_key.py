"""The key of a job: a hash of every setting that can change its numbers.

Two jobs with one key would give the same results, so that the second reuses those of the first.
"""

from typing import Any

from lightning_distill.config.input_files import input_files
from lightning_distill.config.settings import intermediate_losses
from lightning_distill.distributed.topology import Hardware
from lightning_distill.losses.checks import OBJECTIVE
from lightning_distill.stages import STAGES
from lightning_distill.storage.artifacts import key_of

# Groups and settings that change no number.
WITHOUT_EFFECT = (
    "hydra",
    "stage",
    "name",
    "paths",
    "logger",
    *(stage.config_node for stage in STAGES.values() if stage.config_node),
    "sweep",
    "checkpoint_every_n_steps",
    "checkpoint_every_n_minutes",
    "max_skipped_steps",
)
# Settings of `trainer` that say where numbers are computed, which does not change them.
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
# Settings that may be the path of a file or folder, whose content counts besides its name.
INPUTS = (
    ("data", "path"),
    ("data", "validation_path"),
    ("data", "test_path"),
    ("data", "name"),
    ("data", "chat_template"),
    ("teacher", "name"),
    ("student", "name"),
    ("teacher", "path"),
    ("student", "path"),
    ("transfer", "cache"),
)
# Transfers that change nothing for a student that learns from labels alone. `Sequence` changes the
# text, and a transfer from outside the package may change anything.
NEEDS_SOFT_TARGETS = tuple(
    f"lightning_distill.transfer.{name}" for name in ("Online", "Cached", "OnPolicy")
)
# Settings of teacher and student, and the value with which they have no effect.
WITHOUT_EFFECT_AT = {"epochs": None, "keep": "last", "stop_after": None}
# Settings of `data` that have an effect only with data.streaming=true.
OF_STREAMS = {"streaming", "held_out_documents", "tokenizer_mb"}


def job_key(settings: dict[str, Any]) -> str:
    """Equal for two jobs that must give the same numbers. settings: resolved."""
    inputs = [_file_states(settings[group].get(name)) for group, name in INPUTS]
    mixture = settings["data"].get("mixture")
    parts = mixture.values() if isinstance(mixture, dict) else ()  # others are refused later
    for part in (part for part in parts if isinstance(part, dict)):
        inputs += [_file_states(part.get(name)) for group, name in INPUTS if group == "data"]
    return key_of({"inputs": inputs, **_without_idle(_on_one_device(_relevant(settings)))})


def effective_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that can change a job's numbers, hardware included."""
    return _without_idle(_relevant(settings))


def is_baseline(settings: dict[str, Any]) -> bool:
    """Whether nothing in this job's student comes from a teacher."""
    copied = settings["student"].get("initialize") == "teacher_layers"
    return learns_from_labels(settings) and not copied


def learns_from_labels(settings: dict[str, Any]) -> bool:
    """Whether the student's training uses no teacher; its start may be a part of one."""
    unused = settings["transfer"].get("_target_") in (None, *NEEDS_SOFT_TARGETS)
    return _uses_labels_only(settings["loss"]) and unused


def _relevant(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}


def _on_one_device(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the same run on one device, which takes the batches of all of them."""
    devices = Hardware.from_settings(settings).num_devices
    data = dict(settings["data"])
    if isinstance(data.get("batch_size"), int):
        data["batch_size"] *= devices
    if data.get("streaming"):  # each device reads a part of the stream
        data["devices"] = devices
    trainer = _less(settings["trainer"], *HARDWARE, "resume")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, float):  # 1.0 is the whole run, and 1 one batch
        trainer["val_check_interval"] = f"{interval} of the run"
    teacher = _less(settings["teacher"], "device")
    return {**settings, "trainer": trainer, "teacher": teacher, "data": data}


def _without_idle(settings: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what has no effect beside the other settings: the temperature at alpha = 0."""
    data, transfer = settings["data"], settings["transfer"]
    data = _less(data, "num_workers", *(() if data.get("streaming") else OF_STREAMS))
    models = {role: settings[role] for role in ("teacher", "student")}
    for role, node in models.items():
        idle = (key for key, value in WITHOUT_EFFECT_AT.items() if node.get(key) == value)
        models[role] = node = _less(node, *idle)
        if not (node.get("lora") or {}).get("rank"):
            models[role] = _less(node, "lora")
    if is_baseline(settings):
        transfer = {"num_blocks": transfer["num_blocks"]}
    loss = _effective_loss(settings["loss"])
    return {**settings, **models, "data": data, "loss": loss, "transfer": transfer}


def _effective_loss(loss: dict[str, Any]) -> dict[str, Any]:
    nodes = {key for key, value in loss.items() if isinstance(value, dict) and "weight" in value}
    loss = _less(loss, *(nodes - intermediate_losses(loss).keys()))
    if not _uses_labels_only(loss):
        return loss
    kept = {key: loss.get(key) for key in ("fused", "label_smoothing", "shared_vocabulary")}
    weight = loss["hard_weight"]
    return kept | {"hard_weight": 1.0 if weight == "complement" else weight}


def _uses_labels_only(loss: dict[str, Any]) -> bool:
    if loss.get("_target_", OBJECTIVE) != OBJECTIVE or intermediate_losses(loss):
        return False
    return loss["alpha"] == 0 and loss["hard_target"] == "labels"


def _less(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def _file_states(given: Any) -> list[Any]:
    """Name, size and time of change of every file at a path, see `input_files`; empty where there
    is none."""
    files = input_files(given) if given else []
    return [[str(f), s.st_size, s.st_mtime_ns] for f, s in ((f, f.stat()) for f in files)]
