"""What went wrong, in a line that says what to type instead."""

import difflib
import errno
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lightning_distill.errors import ConfigError, _did_you_mean, first_line, one_line

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTDIR)

# In a wheel the configs lie inside the package, in a checkout beside it.
HERE = Path(__file__).resolve().parents[1]
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def explain(error: BaseException) -> str | None:
    """The message for a mistake that the user can mend; None for any other error."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, ConfigError):
            # What a loader's worker raised holds its traceback too.
            return str(link).rpartition("lightning_distill.errors.ConfigError: ")[2].strip()
        if isinstance(link, MissingMandatoryValue):
            key = str(link).removeprefix("Missing mandatory value:").split()[0]
            return f"{key} is not set; give {key}=<value>."
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            return _no_such_option(link)
    for link in chain:
        unknown = ("is not in struct", "' not in '")  # the second: of Hydra's own settings
        if isinstance(link, OmegaConfBaseException) and any(u in str(link) for u in unknown):
            return _no_such_key(error, str(link.full_key))
        if type(link).__name__ == "MisconfigurationException":  # Lightning's; not imported here
            return f"trainer: {first_line(link)}"
    if isinstance(error, InstantiationException):
        cause = error.__cause__ or error
        _, said, key = str(error).rpartition("full_key: ")
        # What a constructor refuses came from its config, and so did its name.
        if not isinstance(cause, ValueError | TypeError | ImportError | InstantiationException):
            return None
        of_a_name = isinstance(cause, ImportError | InstantiationException)  # in several lines
        reason = one_line(cause).partition(" full_key:")[0] if of_a_name else first_line(cause)
        return f"{key}: {reason}" if said else reason
    if isinstance(error, OSError) and traceback.extract_tb(error.__traceback__)[-1].name == "mkdir":
        return f"{error.strerror}: {error.filename}; set paths.outputs to a folder."
    if isinstance(error, PermissionError) or getattr(error, "errno", None) in UNWRITABLE:
        return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else None
    if "Config group override must be" in str(error) and (nameless := _nameless_choices()):
        return f"{' '.join(nameless)} must be the name of a choice."
    if isinstance(error, OverrideParseException):
        reason = one_line(error).partition(" See https:")[0].removeprefix("Error parsing override ")
        hint = "A value with spaces, commas, = or brackets is in quotes: \"data.path='a, b.txt'\"."
        # A server's address may hold a key.
        said = re.sub(r"^(teacher\.(?:url|key_variable)=).*", r"\1***", str(error.override))
        return f"{said}: {reason}. {hint}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        sweeps = str(error).startswith("Ambiguous value for argument")
        full_key = getattr(error, "full_key", None)
        told = full_key is None or str(full_key) in first_line(error)
        where = "" if told else f"{full_key}: "
        return where + first_line(error) + "; -m sweeps over its values." * sweeps
    if isinstance(error, ValueError) and _raised_by(error, "hydra", "lightning", "optim"):
        return first_line(error)
    return None


def _raised_by(error: BaseException, *packages: str) -> bool:
    """Whether one of these packages refused what it was given."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and bool(set(packages) & set(Path(frames[-1].filename).parts))


def _no_such_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    names = [str(name) for name in error.options or []]
    if not group:
        return first_line(error)
    return f"{group}={option} does not exist.{_did_you_mean(option, names)}"


def _no_such_key(error: BaseException, key: str) -> str:
    known = list(_all_keys())
    if choices := sorted({choice for name, choice in known if name == key and choice}):
        return f"{key} is a setting of {' or '.join(choices)}; choose that for every job."
    near = difflib.get_close_matches(key, dict(known), 1, 0.6)
    node = "hydra" if key.startswith("hydra.") else "job"
    hint = f" Did you mean {near[0]}?" if near else f" `lightning-distill --cfg {node}` shows all."
    return f"There is no setting {key}.{hint}"


def _all_keys() -> Iterator[tuple[str, str]]:
    """Every dotted key that some choice of the committed configs has, and that choice."""
    for key in keys_of(OmegaConf.load(CONF / "config.yaml")):
        yield key, ""
    for file in CONF.rglob("*.yaml"):
        group = file.relative_to(CONF).parts[0]
        roles = {"model": ("teacher", "student"), "optimizer": ("optimizer", "teacher.optimizer")}
        roles["schedule"] = ("schedule", "teacher.schedule")
        if file.parent != CONF and group not in ("experiment", "sweep", "hydra"):
            for role in roles.get(group, (group,)):
                choice = f"{role}={file.stem}"
                yield role, ""
                for key in keys_of(OmegaConf.load(file), f"{role}."):
                    yield key, choice


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in map(str, node):
            if key not in ("defaults", "_target_", "_partial_"):
                yield f"{prefix}{key}"
                if not OmegaConf.is_missing(node, key):
                    yield from keys_of(node._get_node(key), f"{prefix}{key}.")


def _nameless_choices() -> list[str]:
    """The overrides of this command that choose no name in a group: `loss=null`."""
    groups = {file.parent.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")}
    given = [one.partition("=") for one in sys.argv[1:]]
    return [
        f"{key}{equals}{value}"
        for key, equals, value in given
        if key.lstrip("+") in groups and not isinstance(yaml.safe_load(value), str)
    ]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Each once: under a debugger or with OC_CAUSE=1, OmegaConf's errors cause themselves."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
