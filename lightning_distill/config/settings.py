"""The composed config as plain dicts and lists, which everything below the command line takes."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_distill.config import allowlist
from lightning_distill.errors import ConfigError

Settings = dict[str, Any]

ABSENT = object()  # in place of a key that the chosen options do not have

GROUPS = {"data", "teacher", "student", "transfer", "loss", "trainer", "paths"}  # of every run


def plain_settings(cfg: DictConfig, without: Collection[str] = ("hydra",)) -> Settings:
    """All top-level nodes but those in `without`, with interpolations resolved."""
    # Resolved in the whole config: `sweep.command` is an interpolation of `hydra`.
    nodes = {str(key): cfg[key] for key in cfg if key not in without}
    return {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in nodes.items()
    }


def load_settings(file: Path, where: str) -> Settings:
    """The settings that a run saved. where: prefix of the messages.

    Raises ConfigError for names that settings may not call, OSError, YAMLError, and ValueError for
    a file of something else.
    """
    cfg = OmegaConf.load(file)
    if isinstance(cfg, DictConfig):
        allowlist.check_targets(OmegaConf.to_container(cfg), where)
    if not isinstance(cfg, DictConfig) or not set(cfg) >= GROUPS:
        raise ValueError(f"it lacks one of {', '.join(sorted(GROUPS))}")
    return plain_settings(cfg)


def typed_keys(settings: Settings) -> set[str]:
    """The keys that the command line sets. settings: with the node `hydra`."""
    overrides = settings["hydra"]["overrides"]["task"]
    return {override.lstrip("+").partition("=")[0] for override in overrides}


def is_pretrained(role: Mapping[str, Any]) -> bool:
    """Whether the node of a role names a pretrained model, or a file of one."""
    return "name" in role or "path" in role


def intermediate_losses(loss: Settings) -> dict[str, float]:
    """The weight of each active loss on intermediate layers, by its key in `loss`.

    Each node of `loss` that has a weight is such a loss, one of the user's own included.
    """
    nodes = {name: node for name, node in loss.items() if isinstance(node, dict)}
    return {name: node["weight"] for name, node in nodes.items() if node.get("weight")}


def each_teacher(settings: Settings) -> list[Settings]:
    """The settings as each of `teacher.members` has them; [settings] without members."""
    members = settings["teacher"].get("members")
    if not members:
        return [settings]
    if not isinstance(members, list) or not all(isinstance(one, Mapping) for one in members):
        raise ConfigError(
            f"teacher.members={members} must list what each teacher has of its own, as in "
            "'teacher.members=[{seed: 0}, {seed: 1}]'."
        )
    shared = OmegaConf.create({"teacher": settings["teacher"]})
    OmegaConf.set_struct(shared, True)  # a key that no teacher has is refused
    merged = (OmegaConf.merge(shared, {"teacher": dict(member)}) for member in members)
    return [{**settings, **plain_settings(one)} for one in merged]  # type: ignore[arg-type]


class Values:
    """The values of a config by their dotted keys, ABSENT where it has no such key."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        # Plain, as a lookup in OmegaConf's nodes takes a millisecond.
        self.nodes: Any = OmegaConf.to_container(cfg, resolve=False)

    def __getitem__(self, key: str) -> Any:
        """Resolved; in a node, interpolations are left as they are."""
        value = self.nodes
        for part in key.split("."):
            if isinstance(value, str) and "${" in value:  # in place of a node
                break
            if not isinstance(value, dict) or part not in value:
                return ABSENT
            value = value[part]
        if not isinstance(value, str) or not ("${" in value or value == "???"):
            return value
        value = OmegaConf.select(self.cfg, key, default=ABSENT)
        return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
