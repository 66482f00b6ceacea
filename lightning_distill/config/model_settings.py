"""What of the settings of pretrained and of served models does not go together, without importing
any."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill.errors import unknown_name

QUANTIZATION = ("int8", "int4")

ADDRESS = "http://localhost:8000/v1"


def problems_of_quantization(cfg: DictConfig) -> Iterator[str]:
    if "quantization" in cfg.student:
        yield (
            f"student.quantization={cfg.student.quantization}: the weights of a student are "
            "trained; only those of a frozen teacher can be quantized, by teacher.quantization"
        )
    kind = cfg.teacher.get("quantization")
    if kind is None:
        return
    found, steps = f"teacher.quantization={kind}", cfg.teacher.max_steps
    if kind not in QUANTIZATION:
        yield str(unknown_name("teacher.quantization", kind, QUANTIZATION)).rstrip(".")
    elif steps:
        yield f"{found} is for a frozen teacher; set it to null, or teacher.max_steps={steps} to 0"
    elif cfg.student.initialize == "teacher_layers":
        yield (
            f"{found} leaves no weights for student.initialize=teacher_layers to copy; set it to "
            "null"
        )
    elif find_spec("torchao") is None:
        yield f"{found} needs torchao: pip install 'lightning_distill[quantization]'"


def problems_of_adapters(cfg: DictConfig) -> Iterator[str]:
    for role in ("teacher", "student"):
        node, lora = cfg[role], cfg[role].get("lora")
        if not lora or not lora.rank:
            continue
        found, dropout, places = f"{role}.lora.rank={lora.rank}", lora.dropout, lora.target_modules
        if "name" not in node and node.get("initialize") != "teacher_layers":
            also = " or student.initialize=teacher_layers" if role == "student" else ""
            yield (
                f"{found} leaves the {role}'s weights as they begin, which is random; set "
                f"{role}=pretrained{also}, or {role}.lora.rank=null"
            )
        elif not node.max_steps:
            yield f"{found} with {role}.max_steps=0 has nothing to train; set one of them"
        elif find_spec("peft") is None:
            yield f"{found} needs peft: pip install 'lightning_distill[lora]'"
        number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
        if not (number and 0 <= dropout < 1):
            yield f"{role}.lora.dropout={dropout} must be a number from 0 to below 1"
        named = isinstance(places, list | ListConfig) and len(places) > 0
        if places is not None and not (named and all(isinstance(one, str) for one in places)):
            yield (
                f"{role}.lora.target_modules={places} must be a list of names such as "
                "[q_proj, v_proj], or null for all linear layers"
            )


def secrets_of_server(url: str, variable: str | None) -> Iterator[str]:
    """Which of these holds a key, that is to stand in neither. It is not repeated."""
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


def problems_of_server(teacher: DictConfig) -> Iterator[str]:
    """Of where a served teacher is."""
    url, variable = str(teacher.url), teacher.key_variable
    yield from secrets_of_server(url, None if variable is None else str(variable))
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        parts, fits = urlsplit(""), False
    if "@" in url or "?" in url:
        pass  # said already
    elif not fits or re.search(r"[\s#]", url):
        yield f"teacher.url={url} must be an address such as {ADDRESS}"
    elif parts.path.rstrip("/").endswith("/completions"):
        yield f"teacher.url={url} must end before /completions, as in http://localhost:8000/v1"
    if not isinstance(teacher.name, str) or not teacher.name:
        yield f"teacher.name={teacher.name} must be a model of the server, by its name there"


def problems_of_served(cfg: DictConfig) -> Iterator[str]:
    """Of what is asked of a served teacher, which tells its largest probabilities alone."""
    only, loss = "with teacher=served", cfg.loss
    if not instantiate(cfg.transfer).accepts_top_k:
        yield (
            f"this transfer {only} needs more than the largest probabilities: set transfer=cached "
            "transfer.stored=topk"
        )
    if cfg.stage == "teacher":
        yield f"stage=teacher {only} has nothing to train: set stage=transfer"
    if cfg.teacher.max_steps != 0:
        yield f"teacher.max_steps={cfg.teacher.max_steps} {only} must be 0: it is not trained here"
    if cfg.teacher.get("members"):
        yield f"teacher.members {only} must be null: one server is one teacher"
    if cfg.student.initialize == "teacher_layers":
        yield (
            f"student.initialize=teacher_layers {only} has no layers to copy: set "
            "student.initialize=random"
        )
    for term in ("hidden", "relations"):
        weight = OmegaConf.select(cfg, f"loss.{term}.weight")
        if weight:
            yield f"loss.{term}.weight={weight} {only} has nothing to look into: set it to 0"
    if loss.get("compares") == "logits" or not loss.get("shared_vocabulary", True):
        yield f"this loss {only} lacks its logits: set loss=forward_kl"
