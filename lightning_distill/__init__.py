"""Distil language models: whole experiments, and their parts.

    import lightning_distill as ld

    results = ld.run(["student=xs", "loss.temperature=2"])
    results.student.nll

    objective = ld.Objective("forward_kl", temperature=2.0)
    loss, terms = objective(student_logits, teacher_logits, labels)

Names are imported when they are first used; `__init__.pyi` has their types.
"""

from typing import Any

from lightning_distill.errors import ConfigError
from lightning_distill.imports import import_quietly

__all__ = [
    "CachedPredictions",
    "ConfigError",
    "Objective",
    "Results",
    "StudentModule",
    "Sweep",
    "TeacherModule",
    "compose",
    "losses",
    "run",
    "sweep",
]

__version__ = "0.1.0"

_MODULES = {
    "CachedPredictions": "experiment.cached_predictions",
    "Objective": "losses.objective",
    "Results": "api",
    "StudentModule": "training.student",
    "Sweep": "api",
    "TeacherModule": "training.teacher",
    "compose": "api",
    "run": "api",
    "sweep": "api",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_quietly("lightning_distill.losses")
    if name in _MODULES:
        return getattr(import_quietly(f"lightning_distill.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lightning_distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
