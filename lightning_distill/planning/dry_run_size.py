"""How much of each part a dry run does, which bounds what looking ahead costs."""

from dataclasses import dataclass

# Weights times tokens of an optimizer step. About a second on a core, far above the sizes that are
# trained from scratch on a CPU; above it a few steps say as much as many.
LARGE = 2 * 10**10


@dataclass(frozen=True)
class DryRunSize:
    """steps: of each training. warmup: of them, whose time is left out. held_out: examples of each
    held-out split. batch_size: what a transfer takes for its micro-batches.
    """

    steps: int
    warmup: int
    held_out: int
    batch_size: int


def dry_run_size(parameters: int, tokens_per_step: int, batch_size: int) -> DryRunSize:
    """All forward and backward passes of a dry run, of those sizes, cost less than 20 steps of the
    run, and of large models less than 5.

    parameters: of the largest model. tokens_per_step: of an optimizer step. batch_size: examples of
    a micro-batch.
    """
    if parameters * tokens_per_step > LARGE:
        return DryRunSize(3, 1, max(1, batch_size // 4), max(1, batch_size // 8))
    return DryRunSize(8, 2, 2 * batch_size, batch_size)
