"""Divergences, one a file: functions of (student, teacher, …) log-probabilities [..., V] to [...].

A file `name.py` has a function `name`. Attributes of the function declare what is not usual:
`compares = "logits"` takes logits / T in place of log-probabilities, and
`shared_vocabulary = False` takes any two vocabularies.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from torch import Tensor

from lightning_distill.errors import unknown_name


def names() -> list[str]:
    return [module.name for module in iter_modules(__path__)]


def find_divergence(name: str) -> Callable[..., Tensor]:
    """Raises ConfigError with the names that there are."""
    if name not in names():
        raise unknown_name("loss", name, names())
    function: Callable[..., Tensor] = getattr(import_module(f"{__name__}.{name}"), name)
    return function
