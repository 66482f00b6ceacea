"""Files and folders that the settings name, and values that they leave open."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_distill.config.input_files import may_be_on_hub, missing_input
from lightning_distill.config.settings import Settings
from lightning_distill.config.unknown_keys import is_foreign

MISSING = "???"  # OmegaConf's mark for a value that the user has to give
OF_DATA = ("path", "validation_path", "test_path", "name")
OF_MODELS = ("name", "tokenizer")


def problems_of_inputs(settings: Settings) -> Iterator[str]:
    """What is not there, or not set, of what a run reads. A class from outside of the package may
    have the same names for arguments of its own."""
    data = settings["data"]
    if not is_foreign(data):
        yield from _problems_of_data(data)
    for role in ("teacher", "student"):
        node = settings[role]
        if not is_foreign(node) and "url" not in node:
            yield from _problems_of_model(role, node)
    cache = settings["transfer"].get("cache")
    if isinstance(cache, str) and not Path(cache).expanduser().is_dir():
        yield f"transfer.cache={cache} is not the folder of a finished cache"
    folder = settings["evaluate"]["task_path"]
    if isinstance(folder, str) and not Path(folder).expanduser().is_dir():
        yield f"evaluate.task_path={folder}: there is no such folder"


def _problems_of_data(data: Settings) -> Iterator[str]:
    mixture = data.get("mixture")
    if mixture is None:
        yield from (f"data.{key} is not set; give data.{key}=<value>" for key in _open(data))
    parts = mixture if isinstance(mixture, dict) else {}
    nodes = {"data": data, **{f"data.mixture.{name}": part for name, part in parts.items()}}
    for prefix, node in nodes.items():
        for key in OF_DATA if isinstance(node, Mapping) else ():
            if missing := _missing(node.get(key)):
                yield f"{prefix}.{key}={missing} does not exist"


def _problems_of_model(role: str, node: Settings) -> Iterator[str]:
    if node.get("name", "") in (None, MISSING):
        yield f"{role}=pretrained needs {role}.name=<a local folder or a name on the hub>"
    for key in OF_MODELS:
        name = str(node.get(key))
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            yield f"{role}.{key}={name}: there is no such folder"


def _open(node: Settings) -> list[str]:
    return [key for key, value in node.items() if value == MISSING]


def _missing(given: Any) -> str | None:
    """The first of one or several names that neither a file nor a data set of the hub has."""
    is_name = isinstance(given, str) and (given == MISSING or may_be_on_hub(given))
    return None if not given or is_name else missing_input(given)
