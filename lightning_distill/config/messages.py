"""The message for an error that a mistake of the user's caused: what is wrong, and what to type."""

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lightning_distill.config.catalog import groups
from lightning_distill.config.schema import RENAMED
from lightning_distill.config.unknown_keys import describe_unknown
from lightning_distill.errors import ConfigError, first_line, one_line, unknown_name

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTDIR)


def explain(error: BaseException) -> str | None:
    """The message for a mistake of the user's; None for any other error."""
    chain = list(_chain(error))
    for explain_cause in (_from_ours_or_missing, _from_unknown_key_or_lightning):
        for cause in chain:
            if message := explain_cause(cause):
                return message
    if isinstance(error, InstantiationException):
        return _from_instantiation(error)
    for explain_error in (_from_operating_system, _from_hydra_or_omegaconf, _from_library):
        if message := explain_error(error):
            return message
    return None


def _from_ours_or_missing(cause: BaseException) -> str | None:
    if isinstance(cause, ConfigError):
        # An error from a loader's worker process contains the text of its traceback.
        return str(cause).rpartition("lightning_distill.errors.ConfigError: ")[2].strip()
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause).removeprefix("Missing mandatory value:").split()[0]
        return f"{key} is not set; give {key}=<value>."
    if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
        return _no_such_option(cause)
    return None


def _from_unknown_key_or_lightning(cause: BaseException) -> str | None:
    unknown = ("is not in struct", "' not in '")  # the second: from Hydra's own node
    if isinstance(cause, OmegaConfBaseException) and any(u in str(cause) for u in unknown):
        return describe_unknown(str(cause.full_key))
    if type(cause).__name__ == "MisconfigurationException":  # by name: Lightning imports torch
        return f"trainer: {first_line(cause)}"
    return None


def _from_instantiation(error: InstantiationException) -> str | None:
    """What a constructor refused, or why its name could not be imported, with the node's key."""
    cause = error.__cause__ or error
    if not isinstance(cause, ValueError | TypeError | ImportError | InstantiationException):
        return None
    _, has_key, key = str(error).rpartition("full_key: ")
    if isinstance(cause, ImportError | InstantiationException):  # in several lines
        reason = one_line(cause).partition(" full_key:")[0]
    else:
        reason = first_line(cause)
    return f"{key}: {reason}" if has_key else reason


def _from_operating_system(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        return None
    if traceback.extract_tb(error.__traceback__)[-1].name == "mkdir":
        return f"{error.strerror}: {error.filename}; set paths.outputs to a folder."
    if isinstance(error, PermissionError) or error.errno in UNWRITABLE:
        return f"{error.strerror}: {error.filename}"
    return None


def _from_hydra_or_omegaconf(error: BaseException) -> str | None:
    if "Config group override must be" in str(error) and (nameless := _nameless_choices()):
        return f"{' '.join(nameless)} must be the name of a choice."
    if isinstance(error, OverrideParseException):
        reason = one_line(error).partition(" See https:")[0].removeprefix("Error parsing override ")
        hint = "A value with spaces, commas, = or brackets is in quotes: \"data.path='a, b.txt'\"."
        # A server's address may contain a key.
        override = re.sub(r"^(teacher\.(?:url|key_variable)=).*", r"\1***", str(error.override))
        return f"{override}: {reason}. {hint}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        if "does not support sweep type" in str(error):
            return "interval() and choice() are of hydra/sweeper=optuna, an extra; -m takes lists."
        is_sweep = str(error).startswith("Ambiguous value for argument")
        key = getattr(error, "full_key", None)
        where = "" if key is None or str(key) in first_line(error) else f"{key}: "
        return where + first_line(error) + "; -m sweeps over its values." * is_sweep
    return None


def _from_library(error: BaseException) -> str | None:
    """A ValueError that Hydra, Lightning or an optimizer raised about a setting."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError) or not frames:
        return None
    packages = {"hydra", "lightning", "optim", "optuna"}
    return first_line(error) if packages & set(Path(frames[-1].filename).parts) else None


def _no_such_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return first_line(error)
    if new := RENAMED.get(f"{group}={option}"):
        return f"{group}={option} is now {new}."
    options = [str(one) for one in error.options or []]
    if group == "data" and (Path(option).suffix or Path(option).exists()):
        return (
            f"data={option} is a file, and data= names a kind: set data=text data.path={option}, "
            "or data=chat. `lightning-distill --help data` lists the kinds."
        )
    message = str(unknown_name(group, option, options))
    if group in ("teacher", "student"):
        name = f"{group}=pretrained {group}.name={option}"
        return f"{message} A folder, or a model of the hub, is {name}."
    return message


def _nameless_choices() -> list[str]:
    """The overrides of this command that choose no option of a group by name: `loss=null`."""
    given = [one.partition("=") for one in sys.argv[1:]]
    return [
        f"{key}{equals}{value}"
        for key, equals, value in given
        if key.lstrip("+") in groups() and not isinstance(yaml.safe_load(value), str)
    ]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, each once: with OC_CAUSE=1, OmegaConf's errors cause themselves."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
