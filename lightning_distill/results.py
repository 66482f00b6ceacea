"""What a job leaves for others to read: `results.json`."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from lightning_distill import ConfigError, ranks, targets
from lightning_distill.artifacts import key_of, write_whole
from lightning_distill.cost import Cost
from lightning_distill.errors import one_line

RESULTS = "results.json"

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

# What a run's settings have for sure.
GROUPS = {"data", "teacher", "student", "transfer", "loss", "trainer", "paths"}

# Settings of data that count where it is streamed alone.
OF_STREAMS = {"streaming", "held_out_documents", "tokenizer_mb"}


@dataclass(frozen=True)
class Job:
    """One run: where it writes, and what it is called."""

    folder: Path
    name: str
    group: str  # the sweep it belongs to, or its own kind
    overrides: list[str]
    seed: int
    key: str
    started: str  # when the command was, which may be that of a whole sweep
    resumes: bool = True  # where a run with the same settings was interrupted

    @classmethod
    def of(
        cls, cfg: DictConfig, folder: Path, name: str, group: str, overrides: list[str]
    ) -> "Job":
        key, started = settings_key(cfg), cfg.sweep.started
        resumes = cfg.trainer.get("resume", "auto") == "auto"
        return cls(folder, name, group, overrides, cfg.seed, key, started, resumes)

    def was_interrupted(self) -> bool:
        """Whether a run that is gone on with stopped half-way in this folder."""
        if not self.resumes:
            return False
        try:
            before = read_results(self.folder)
        except (OSError, ValueError):
            return False
        return stopped_half_way(before) and before.get("key") == self.key

    def results(self, cost: "Cost", scores: dict[str, Any]) -> dict[str, Any]:
        """The content of results.json for a job that came to its end."""
        return {**self.state("finished"), **scores, "cost": asdict(cost)}

    def state(self, status: str, **more: Any) -> dict[str, Any]:
        """The content of results.json for a job that has not."""
        return {
            "status": status,
            "key": self.key,
            "seed": self.seed,
            "overrides": self.overrides,
            "started": self.started,
            **more,
        }


def stopped_half_way(found: dict[str, Any]) -> bool:
    """Whether these are the results of a run that can go on: one that was interrupted, or broke
    by no mistake in its settings."""
    broke = found.get("status") == "failed" and found.get("mendable") is False
    return found.get("status") == "running" or broke


def settings_key(cfg: DictConfig) -> str:
    """Equal for two jobs that must give the same numbers."""
    settings = _on_one_device(_settings(cfg), ranks.wanted(cfg))
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


def learns_alone(settings: dict[str, Any]) -> bool:
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
    if learns_alone(settings):
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


def write_results(folder: Path, results: dict[str, Any]) -> None:
    if not ranks.first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any]:
    """Raises OSError where there is none, ValueError where it is not one."""
    found = json.loads((folder / RESULTS).read_text())
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def check_results(found: dict[str, Any]) -> None:
    """Raises ValueError unless results are as a job writes them, as far as others rely on it."""
    if not isinstance(found.get("status"), str):
        raise ValueError("it holds no status")
    known = {key: found.get(key) or {} for key in ("student", "teacher", "cost")}
    for key, node in known.items():
        if not isinstance(node, dict) or not _is_of_numbers(node):
            raise ValueError(f"its {key} is no table of numbers")
    needed = {"nll", "parameters"}
    if any(known[key] and not needed <= known[key].keys() for key in ("student", "teacher")):
        raise ValueError(f"a model of it lacks one of {', '.join(sorted(needed))}")
    if found["status"] == "finished" and not (known["cost"] and "seed" in found and "key" in found):
        raise ValueError("it lacks the seed, the key or the cost of a finished job")


def _is_of_numbers(node: dict[str, Any]) -> bool:
    """As far down as it goes: what a task measures is a table of its own."""
    return all(
        _is_of_numbers(value) if isinstance(value, dict) else _is_number(value)
        for value in node.values()
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def finished_run(setting: str, folder: Path) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and results of a run's folder, which `setting` names.

    Raises ConfigError where it is none, or did not come to its end.
    """
    for needed in (".hydra/config.yaml", RESULTS):
        if not (folder / needed).exists():
            raise ConfigError(f"{setting}={folder} is not the folder of a run: no {needed}.")
    try:
        needed = RESULTS
        results = read_results(folder)
        check_results(results)
        needed = ".hydra/config.yaml"
        cfg = OmegaConf.load(folder / needed)
        if isinstance(cfg, DictConfig):
            targets.check_targets(OmegaConf.to_container(cfg), f"{setting}={folder}: ")
        if not isinstance(cfg, DictConfig) or not set(cfg) >= GROUPS:
            raise ValueError(f"it lacks one of {', '.join(sorted(GROUPS))}")
    except ConfigError:
        raise
    except (OSError, ValueError, YAMLError) as error:
        reason = one_line(error)
        raise ConfigError(f"{setting}={folder}: its {needed} cannot be read: {reason}.") from error
    if results["status"] != "finished":
        state = f"{setting}={folder} is {results['status']}"
        raise ConfigError(f"{state}; run its command again first.")
    return cfg, results


def objectives(results: dict[str, Any], names: list[str]) -> float | list[float] | None:
    """What a sweeper is told of a job. None, a failed trial, where anything is no number.

    NaN would end an Optuna study.
    """
    found = []
    for name in names:
        group, _, key = name.partition(".")
        value = (results.get(group) or {}).get(key)
        if value is None or not math.isfinite(value):
            return None
        found.append(float(value))
    return found if len(found) > 1 else found[0]


def scores() -> list[str]:
    """The dotted keys of all numbers in results.json."""
    model = ("parameters", "nll", "perplexity", "bits_per_byte", "calibration_error")
    known = {
        "student": (*model, "teacher_agreement", "teacher_kl"),
        "teacher": model,
        "cost": tuple(field.name for field in fields(Cost)),
    }
    return [f"{group}.{key}" for group, keys in known.items() for key in keys]


def is_metric(key: str) -> bool:
    """Whether a key of a task's scores, dotted or not, is a result: not how sure, nor of how many
    examples it is."""
    name = key.rsplit(".", 1)[-1]
    return name != "examples" and not name.endswith("_stderr") and "_stderr_" not in name
