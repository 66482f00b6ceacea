"""The metrics of results.json, each declared once: name, direction and how it is shown.

Imports no torch, so that `--help` and a refused setting can read them. A task outside the package
declares what its `quality()` and `score_writing()` return as a class attribute, `metrics`; that
makes its metrics objectives of a sweep, and columns of the table and of the report.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from hydra.errors import HydraException
from hydra.utils import get_class

from lightning_distill.config import allowlist
from lightning_distill.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """A number of results.json.

    key: where it stands in its group (`student`, `teacher`, `cost`). label: the head of a column.
    direction: what makes it better. digits: behind the point. meaning: for a reader of the report.
    """

    key: str
    label: str
    direction: Literal["minimize", "maximize"]
    digits: int
    meaning: str


PARAMETERS = Metric("parameters", "size", "minimize", 0, "parameters of the model")
NLL = Metric("nll", "nll", "minimize", 3, "negative log-likelihood in nats per prediction")
BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", "minimize", 3, "nll per byte of text")
ECE = Metric(
    *("calibration_error", "ECE", "minimize", 3),
    "expected calibration error: the mean of |accuracy − confidence| over 15 bins",
)
AGREEMENT = Metric(
    *("teacher_agreement", "agreement", "maximize", 2),
    "share of predictions whose most probable class is the teacher's",
)
KL = Metric(
    *("teacher_kl", "KL(p ‖ q)", "minimize", 3),
    "divergence of the student's distribution q from the teacher's p, in nats",
)
# What some tasks measure and others do not, in the order of the columns.
TASK = (
    Metric("perplexity", "perplexity", "minimize", 1, "exp(nll)"),
    Metric("accuracy", "accuracy", "maximize", 3, "share of examples classified correctly"),
    Metric("f1", "F1", "maximize", 3, "mean of the classes' F1"),
    Metric(
        "corrected_omitted_accuracy",
        "omitted class",
        "maximize",
        3,
        "accuracy on the omitted class, with its bias corrected",
    ),
    Metric("bleu", "BLEU", "maximize", 1, "of generated text, against the references (sacrebleu)"),
    Metric("chrf", "chrF", "maximize", 1, "of generated text, against the references (sacrebleu)"),
    Metric("rouge_l", "ROUGE-L", "maximize", 3, "of generated text, against the references"),
)
# Measured and saved, without a column.
UNLISTED = (
    Metric("omitted_accuracy", "omitted", "maximize", 3, "accuracy on the omitted class"),
    Metric("corrected_accuracy", "corrected", "maximize", 3, "accuracy with the bias corrected"),
)
SPEED = (
    Metric(
        "speed.tokens_per_second",
        "tokens/s",
        "maximize",
        0,
        "tokens generated per second",
    ),
    Metric(
        "speed.first_token_seconds",
        "first token",
        "minimize",
        4,
        "time to the first generated token",
    ),
    Metric("speed.bytes", "weights", "minimize", 0, "bytes of the model's weights"),
)
COST = (
    Metric("teacher_seconds", "teacher, s", "minimize", 0, "seconds of training the teacher"),
    Metric("transfer_seconds", "transfer, s", "minimize", 0, "seconds of the transfer"),
    Metric("student_seconds", "seconds", "minimize", 0, "seconds of training the student"),
    Metric(
        "student_tokens_per_second",
        "tokens/s",
        "maximize",
        0,
        "target tokens trained on per second",
    ),
    Metric("peak_memory_mb", "memory, MB", "minimize", 0, "peak while the student trains"),
    Metric("skipped_steps", "skipped", "minimize", 0, "steps without a finite loss or gradient"),
)
MODEL = (PARAMETERS, NLL, BITS_PER_BYTE, ECE, *TASK, *UNLISTED, *SPEED)
GROUPS = {"student": (*MODEL, AGREEMENT, KL), "teacher": MODEL, "cost": COST}


def declared_by(task: str) -> tuple[Metric, ...]:
    """The metrics of a task from outside the package, by the dotted name of its class.

    Empty where the settings may not call it, or it cannot be imported: who needs it says so.
    """
    if task.startswith("lightning_distill."):
        return ()
    with suppress(ConfigError, HydraException, ImportError, ValueError):
        allowlist.check_targets({"_target_": task})
        return tuple(getattr(get_class(task), "metrics", ()))
    return ()


def task_metrics(tasks: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Those of the package's tasks, and those that `tasks` declare."""
    known = {metric.key for metric in GROUPS["student"]}
    more = {metric.key: metric for task in dict.fromkeys(tasks) for metric in declared_by(task)}
    return (*TASK, *(metric for key, metric in more.items() if key not in known))


def objective_metrics(task: str = "") -> dict[str, Metric]:
    """Every number that a sweep can optimize, by its dotted name. task: the class of `data=`."""
    groups = {
        name: (*metrics, *(declared_by(task) if task and name != "cost" else ()))
        for name, metrics in GROUPS.items()
    }
    return {f"{group}.{one.key}": one for group, metrics in groups.items() for one in metrics}


def directions(names: Iterable[str], task: str = "") -> list[str]:
    """`minimize` or `maximize` of each objective; a name that is refused later is minimized."""
    known = objective_metrics()
    if not set(names) <= known.keys():
        known = objective_metrics(task)
    return [known[name].direction if name in known else "minimize" for name in names]


def is_metric(key: str) -> bool:
    """Whether a key of an lm-eval task's scores, dotted or not, is a metric: not a standard error,
    and not the number of examples."""
    name = key.rsplit(".", 1)[-1]
    return name != "examples" and not name.endswith("_stderr") and "_stderr_" not in name
