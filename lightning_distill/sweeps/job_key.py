"""The key of a job: a hash of every setting that can change its numbers."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_distill.distributed import topology
from lightning_distill.storage.artifacts import key_of

# What of the configuration cannot change a job's numbers is no part of its key.
WITHOUT_EFFECT = (
    "hydra",
    "stage",
    "name",
    "paths",
    "logger",
    "evaluate",
    "export",
    "report",
    "dashboard",
    "sweep",
    "checkpoint_every_n_steps",
    "checkpoint_every_n_minutes",
    "max_skipped_steps",
)
# What of the trainer says where numbers are computed, and not which.
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
# Settings that may name files of the user's, which may change while their names stay.
INPUTS = (
    ("data", "path"),
    ("data", "name"),
    ("data", "chat_template"),
    ("teacher", "name"),
    ("student", "name"),
    ("transfer", "cache"),
)

# Settings of data that count where it is streamed alone.
OF_STREAMS = {"streaming", "held_out_documents", "tokenizer_mb"}


def job_key(cfg: DictConfig) -> str:
    """Equal for two jobs that must give the same numbers."""
    settings = _on_one_device(_settings(cfg), topology.num_devices(cfg))
    inputs = [_state_of(settings[group].get(name)) for group, name in INPUTS]
    return key_of({"inputs": inputs, **_effective(settings)})


def _on_one_device(settings: dict[str, Any], devices: int) -> dict[str, Any]:
    """The settings of the same run on one device, which takes the batches of all of them."""
    size = settings["data"].get("batch_size")
    trainer = {k: v for k, v in settings["trainer"].items() if k not in (*HARDWARE, "resume")}
    teacher = {k: v for k, v in settings["teacher"].items() if k != "device"}
    data = settings["data"] | ({"batch_size": size * devices} if isinstance(size, int) else {})
    if data.get("streaming"):  # each device has a stream of its own
        data["devices"] = devices
    return {**settings, "trainer": trainer, "teacher": teacher, "data": data}


def effective_settings(cfg: DictConfig) -> dict[str, Any]:
    """What of the configuration can change a job's numbers."""
    return _effective(_settings(cfg))


def _settings(cfg: DictConfig) -> dict[str, Any]:
    known = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in WITHOUT_EFFECT])
    settings = OmegaConf.to_container(known, resolve=True)
    assert isinstance(settings, dict)
    return {str(k): v for k, v in settings.items()}


def is_baseline(settings: dict[str, Any]) -> bool:
    """Whether nothing in this job's student is from a teacher."""
    copied = settings["student"].get("initialize") == "teacher_layers"
    written = settings["transfer"].get("_target_", "").endswith(".Sequence")  # by the teacher
    return _needs_labels_alone(settings["loss"]) and not (written or copied)


def _needs_labels_alone(loss: dict[str, Any]) -> bool:
    inside = any(loss[term]["weight"] for term in ("hidden", "relations") if term in loss)
    return loss["alpha"] == 0 and loss["hard_target"] == "labels" and not inside


def _effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what has no effect beside the other settings: the temperature at alpha = 0."""
    loss, transfer = dict(settings["loss"]), settings["transfer"]
    unread = {"num_workers"} | (set() if settings["data"].get("streaming") else OF_STREAMS)
    settings = {
        **settings,
        "data": {key: value for key, value in settings["data"].items() if key not in unread},
    }
    for role in ("teacher", "student"):
        node = settings[role]
        if not (node.get("lora") or {}).get("rank"):
            settings = {**settings, role: {k: v for k, v in node.items() if k != "lora"}}
    for term in ("hidden", "relations"):
        if not loss[term]["weight"]:
            del loss[term]
    if _needs_labels_alone(loss):
        kept = {key: loss.get(key) for key in ("fused", "label_smoothing", "shared_vocabulary")}
        weight = loss["hard_weight"]
        loss = kept | {"hard_weight": 1.0 if weight == "complement" else weight}
    if is_baseline(settings):
        transfer = {"num_blocks": transfer["num_blocks"]}
    return {**settings, "loss": loss, "transfer": transfer}


def _state_of(path: Any) -> list[Any]:
    """Name, size and time of change of every file there; nothing for what is no path here."""
    if not isinstance(path, str) or not path or not Path(path).expanduser().exists():
        return []
    root = Path(path).expanduser()
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    states = ((f, f.stat()) for f in files if f.is_file())
    return [[str(f.relative_to(root)), s.st_size, s.st_mtime_ns] for f, s in states]
