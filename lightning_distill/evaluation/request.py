"""What `evaluate` asks for beside the scores of the task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationRequest:
    """tasks: names of lm-eval tasks. task_path: a folder with tasks of the user's own, in lm-eval's
    YAML. limit: examples a task; None for all. num_fewshot: worked examples in a prompt; None for
    the task's own number. batch_size: prompts at once. speed: whether to measure the speed of
    generation. times_answers: estimate the seconds of generating the answers from a few tokens,
    instead of generating and scoring them.
    """

    tasks: tuple[str, ...] = ()
    task_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    speed: bool = False
    times_answers: bool = False
