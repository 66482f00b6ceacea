"""EleutherAI's lm-eval tasks, on student and teacher: `evaluate.tasks`.

lm-eval is an extra, imported where a task is requested. The index of its own tasks takes ten
seconds to read; for the user's tasks, below `evaluate.task_path`, it is not read.
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
from lightning_distill.metrics.declarations import is_metric

log = logging.getLogger(__name__)

SEED = 1234  # of few-shot examples and sampled answers; lm-eval's default
BOOTSTRAP_ITERS = 1000  # for the standard errors of metrics that are not means
SUGGESTIONS = 5  # task names suggested for a mistyped one

# By task: its metrics, their `<metric>_stderr`, and the number of `examples`.
Scores = dict[str, dict[str, float]]


@dataclass
class Tasks:
    """The tasks of a request, with their data.

    loaded: lm-eval's task and group objects. cache: scores by the `reuse_key` of a model.
    """

    loaded: Any
    limit: int | None
    batch_size: int
    cache: dict[str, Scores] = field(default_factory=dict)

    def evaluate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reuse_key: str | None = None,
    ) -> Scores:
        """Evaluates on the model's device, in the precision of its weights.

        reuse_key: identifies a model that other jobs of this process score as well; it is scored
        once. Raises ConfigError where a task does not fit the model.
        """
        if reuse_key is None:
            return self._evaluate(model, tokenizer)
        if reuse_key not in self.cache:
            self.cache[reuse_key] = self._evaluate(model, tokenizer)
        return self.cache[reuse_key]

    def _evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        with _silenced():
            for task in self.loaded["tasks"].values():
                task.set_fewshot_seed(SEED)
            L.seed_everything(SEED, verbose=False)
            # A copy, because lm-eval adds a padding token.
            tokenizer = copy.deepcopy(tokenizer)
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size)
            try:
                # `simple_evaluate` would also spend seconds on listing the machine's packages.
                output = evaluate(
                    lm=lm,
                    task_dict=self.loaded,
                    limit=self.limit,
                    bootstrap_iters=BOOTSTRAP_ITERS,
                    log_samples=False,
                )
            # Answers longer than the model has positions, or an error in a task's metric.
            except (AssertionError, ValueError, TypeError, LookupError) as error:
                reason = str(error).split("\n")[0] or repr(error)
                raise ConfigError(f"evaluate.tasks, with this model: {reason}") from error
        scores = {name: flat_metrics(result) for name, result in output["results"].items()}
        return {name: metrics for name, metrics in scores.items() if metrics}


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
        import lm_eval.models.huggingface  # noqa: F401 (needs more packages than lm_eval)
    except ImportError as error:
        raise ConfigError(
            f"evaluate.tasks needs lm-eval: pip install 'lightning_distill[lm-eval]' ({error})."
        ) from error
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its bootstrap would fork this process
    given = f"evaluate.tasks=[{','.join(names)}]"
    if num_fewshot:
        given += f" with evaluate.num_fewshot={num_fewshot}"
    with _silenced():
        manager = _task_manager(names, path)
        L.seed_everything(SEED, verbose=False)  # some tasks shuffle their answers when loaded
        try:
            loaded = manager.load(list(names))
            for name, task in loaded["tasks"].items():
                _prepare(name, task, num_fewshot)
        except ConfigError:
            raise
        except Exception as error:  # tasks are third-party YAML, code and data
            reason = str(error).strip().split("\n")[0] or repr(error)
            raise ConfigError(f"{given} cannot be prepared: {reason}") from error
    return Tasks(loaded, limit, batch_size)


def _prepare(name: str, task: Any, num_fewshot: int | None) -> None:
    """Sets the number of few-shot examples, and makes the first prompt, to find errors early."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"evaluate.tasks: {name} runs code that models generate, which is not supported."
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"evaluate.tasks: {name} is not text-only.")
    default = task.get_config("num_fewshot")
    if default is None or (num_fewshot is not None and default != 0):  # 0: they are in the prompt
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(SEED)
    task.build_all_requests(limit=1)


def _task_manager(names: tuple[str, ...], path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    folder = None if path is None else str(Path(path).expanduser())
    if folder:
        user_tasks = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= set(user_tasks.all_subtasks):
            return user_tasks
    manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, SUGGESTIONS, 0.5)
            hint = f" The nearest are: {', '.join(near)}." if near else ""
            raise ConfigError(
                f"evaluate.tasks: there is no task {name}.{hint} `lm-eval ls tasks` lists all; "
                "tasks of your own are looked for below evaluate.task_path."
            )
    return manager


@contextmanager
def _silenced() -> Iterator[None]:
    """Hides lm-eval's output, except progress bars in a terminal."""
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


def flat_metrics(result: dict[str, Any]) -> dict[str, float]:
    """lm-eval's result of a task, by `acc` for `acc,none`, `exact_match_strict` for
    `exact_match,strict`.

    Values that are not finite numbers are left out. Empty for a group without an average.
    """
    metrics: dict[str, float] = {}
    for key, value in result.items():
        metric, comma, answer_filter = key.partition(",")
        if comma and isinstance(value, Real) and math.isfinite(value):
            name = metric if answer_filter == "none" else f"{metric}_{answer_filter}"
            metrics[name] = float(value)
    if metrics and "sample_len" in result:
        metrics["examples"] = int(result["sample_len"])
    return metrics


def scores_table(scores: dict[str, Scores]) -> str:
    """A row per metric, with standard errors, and a column per role."""
    table = Table()
    for head in ("task", "examples", "metric", *scores):
        table.add_column(head, justify="left" if head in ("task", "metric") else "right")
    first = next(iter(scores.values()))
    for task, metrics in first.items():
        for metric in filter(is_metric, metrics):
            cells = [_with_error(of_role.get(task, {}), metric) for of_role in scores.values()]
            table.add_row(task, f"{metrics.get('examples', '')}", metric, *cells)
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return text.getvalue().rstrip()


def _with_error(metrics: dict[str, float], metric: str) -> str:
    if metric not in metrics:
        return ""
    error = metrics.get(_error_key(metric, metrics))
    return f"{metrics[metric]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _error_key(metric: str, metrics: dict[str, float]) -> str:
    """lm-eval puts `_stderr` before the name of the answer filter."""
    parts = metric.split("_")
    keys = ("_".join([*parts[:at], "stderr", *parts[at:]]) for at in range(len(parts), 0, -1))
    return next((key for key in keys if key in metrics), "")
