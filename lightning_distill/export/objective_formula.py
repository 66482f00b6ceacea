"""The objective of a run as a formula, with the values of its settings."""

import inspect
from collections.abc import Iterator
from typing import Any

import yaml
from hydra.utils import instantiate

from lightning_distill.config.settings import intermediate_losses
from lightning_distill.export.markdown import Markdown, code, text

HARD_TARGETS = {"labels": "the text", "teacher": "the teacher's distribution"}


def objective_formula(loss: dict[str, Any]) -> str:
    """L = hard_weight · H(t, q) + alpha · T² · D(p_T, q_T). loss: the settings of the objective."""
    T, alpha, hard = (_symbol(loss, key) for key in ("temperature", "alpha", "hard_weight"))
    if loss["hard_weight"] == "complement":
        hard = f"(1 − {alpha})"
    terms = intermediate_losses(loss).items()
    intermediate = "".join(f" + {weight:g} · {name}" for name, weight in terms)
    return f"L = {hard} · H(t, q) + {alpha} · {T}² · D(p_T, q_T){intermediate}"


def symbol_definitions(loss: dict[str, Any]) -> Markdown:
    """What the symbols of the formula mean."""
    return Markdown("; ".join(_definitions(loss)))


def _definitions(loss: dict[str, Any]) -> Iterator[str]:
    yield (
        "p and q are the next-token distributions of teacher and student, p_T and q_T those at "
        f"temperature T = {text(_symbol(loss, 'temperature'))}"
    )
    yield f"t is {HARD_TARGETS[loss['hard_target']]}"
    yield f"D is {_divergence(loss)}"
    if loss.get("label_smoothing"):
        yield f"{loss['label_smoothing']:g} of t is spread over the vocabulary"
    for key in ("temperature", "alpha"):
        if isinstance(loss[key], dict):
            schedule = yaml.safe_dump(loss[key], default_flow_style=True, sort_keys=False)
            yield f"{key} follows {text(schedule)}"


def _symbol(loss: dict[str, Any], key: str) -> str:
    """The value; the key if that follows a schedule."""
    value = loss[key]
    return f"{value:g}" if isinstance(value, int | float) else key


def _divergence(loss: dict[str, Any]) -> str:
    """The first sentence of the divergence's docstring, which is its formula."""
    if "divergence" not in loss:
        return code(loss["_target_"])
    function = instantiate(loss["divergence"])
    paragraph = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return f"{code(function.__name__)}: {text(paragraph.split('. ')[0].rstrip('.'))}"
