"""EleutherAI's lm-eval, on student and teacher: `evaluate.tasks`.

It is an extra, and imported when a task is asked for. Tasks of the user's own, below
`evaluate.task_path`, are found at once; only for others is lm-eval's whole index read, which takes
ten seconds.
"""

import copy
import difflib
import io
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.request import EvaluationRequest
from lightning_distill.metrics.names import is_metric

log = logging.getLogger(__name__)

SEED = 1234  # of the examples that prompts show, and of sampled answers; lm-eval's own
RESAMPLES = 1000  # of the examples, for the errors of metrics that are no means
NEAR = 5  # names that a mistyped one is answered with

# What is known of a task: its metrics, `<metric>_stderr`, and the number of `examples`.
Scores = dict[str, dict[str, float]]


@dataclass
class Tasks:
    """What `evaluate.tasks` names, with its data."""

    loaded: Any  # lm-eval's tasks and groups
    limit: int | None
    batch_size: int
    known: dict[str, Scores] = field(default_factory=dict)  # by what is known of a model's weights

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, key: str | None = None
    ) -> Scores:
        """Where the model is, and in the precision of its weights.

        key: of a model that other jobs have, too: it does these tasks once.
        """
        if key is None:
            return self._scores(model, tokenizer)
        if key not in self.known:
            self.known[key] = self._scores(model, tokenizer)
        return self.known[key]

    def _scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        with _quietly():
            for task in self.loaded["tasks"].values():
                task.set_fewshot_seed(SEED)
            L.seed_everything(SEED, verbose=False)
            # It gives the tokenizer a padding token, which ours is to be without.
            own = copy.deepcopy(tokenizer)
            lm = HFLM(pretrained=model, tokenizer=own, batch_size=self.batch_size)
            try:
                # Not `simple_evaluate`, which also lists the machine's packages: seconds each time.
                found = evaluate(
                    lm=lm,
                    task_dict=self.loaded,
                    limit=self.limit,
                    bootstrap_iters=RESAMPLES,
                    log_samples=False,
                )
            # Answers longer than the model has positions, or a mistake in how a task scores them.
            except (AssertionError, ValueError, TypeError, LookupError) as error:
                reason = str(error).split("\n")[0] or repr(error)
                raise ConfigError(f"evaluate.tasks: not with this model: {reason}") from error
        named = {name: _numbers(one) for name, one in found["results"].items()}
        return {name: numbers for name, numbers in named.items() if numbers}


def load_tasks(request: EvaluationRequest) -> Tasks | None:
    """The requested tasks with their data; None where none are requested.

    Raises ConfigError for a task that does not exist or whose data cannot be loaded.
    """
    if not request.tasks:
        return None
    return _load(
        *(request.tasks, request.task_path, request.limit, request.num_fewshot),
        request.batch_size,
    )


@lru_cache(maxsize=1)  # for the other jobs of a sweep
def _load(
    names: tuple[str, ...],
    path: str | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
) -> Tasks:
    if path is not None and not Path(path).expanduser().is_dir():
        raise ConfigError(f"evaluate.task_path={path}: there is no such folder.")
    try:
        import lm_eval.models.huggingface  # noqa: F401 (it needs more than lm-eval itself)
    except ImportError as error:
        raise ConfigError(
            f"evaluate.tasks needs lm-eval: pip install 'lightning_distill[lm-eval]' ({error})."
        ) from error
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its resampling would fork this process
    shown = f"evaluate.tasks=[{','.join(names)}]"
    if num_fewshot:
        shown += f" with evaluate.num_fewshot={num_fewshot}"
    with _quietly():
        manager = _manager(names, path)
        L.seed_everything(SEED, verbose=False)  # some tasks shuffle their answers here
        try:
            loaded = manager.load(list(names))
            for name, task in loaded["tasks"].items():
                _prepare(name, task, num_fewshot)
        except ConfigError:
            raise
        except Exception as error:  # a task is anybody's YAML and code, and data of the hub's
            reason = str(error).strip().split("\n")[0] or repr(error)
            raise ConfigError(f"{shown} cannot be made ready: {reason}") from error
    return Tasks(loaded, limit, batch_size)


def _prepare(name: str, task: Any, num_fewshot: int | None) -> None:
    """Sets how many examples a prompt shows, and makes the first prompt, so that what is wrong
    with a task shows before anything is trained."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"evaluate.tasks: {name} runs code that models write, which is not done.")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"evaluate.tasks: {name} is not of text alone.")
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):  # 0: a prompt that has its examples
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(SEED)
    task.build_all_requests(limit=1)


def _manager(names: tuple[str, ...], path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    folder = None if path is None else str(Path(path).expanduser())
    if folder:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, NEAR, 0.5)
            hint = f" The nearest are: {', '.join(near)}." if near else ""
            raise ConfigError(
                f"evaluate.tasks: there is no task {name}.{hint} `lm-eval ls tasks` lists all; "
                "tasks of your own are looked for below evaluate.task_path."
            )
    return manager


@contextmanager
def _quietly() -> Iterator[None]:
    """Without its remarks; its bars only where somebody can see them move."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(io.StringIO()))
            if not sys.stderr.isatty():
                stack.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        logger.setLevel(level)


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """`acc,none` as `acc`; `exact_match,strict` as `exact_match_strict`.

    Empty for a group that is not averaged. What is no number is left out.
    """
    numbers: dict[str, float] = {}
    for key, value in found.items():
        metric, comma, answer = key.partition(",")
        if comma and isinstance(value, Real) and math.isfinite(value):
            numbers[metric if answer == "none" else f"{metric}_{answer}"] = float(value)
    if numbers and "sample_len" in found:
        numbers["examples"] = int(found["sample_len"])
    return numbers


def table(scores: dict[str, Scores]) -> str:
    """A line a metric, with its standard error, and a column a model."""
    drawn = Table()
    for head in ("task", "examples", "metric", *scores):
        drawn.add_column(head, justify="left" if head in ("task", "metric") else "right")
    first = next(iter(scores.values()))
    for task, numbers in first.items():
        for metric in filter(is_metric, numbers):
            cells = [_with_error(one.get(task, {}), metric) for one in scores.values()]
            drawn.add_row(task, f"{numbers.get('examples', '')}", metric, *cells)
    text = io.StringIO()
    Console(file=text, width=120).print(drawn)
    return text.getvalue().rstrip()


def _with_error(numbers: dict[str, float], metric: str) -> str:
    if metric not in numbers:
        return ""
    error = numbers.get(_error_of(metric, numbers))
    return f"{numbers[metric]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _error_of(metric: str, numbers: dict[str, float]) -> str:
    """lm-eval puts `_stderr` before the name of what picks the answer."""
    parts = metric.split("_")
    keys = ("_".join([*parts[:at], "stderr", *parts[at:]]) for at in range(len(parts), 0, -1))
    return next((key for key in keys if key in numbers), "")
