"""What of the settings of pretrained models does not go together, without importing any."""

from collections.abc import Iterator
from importlib.util import find_spec

from omegaconf import DictConfig, ListConfig

from lightning_distill.errors import nearest

QUANTIZATION = ("int8", "int4")


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
        yield str(nearest("teacher.quantization", kind, QUANTIZATION)).rstrip(".")
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
