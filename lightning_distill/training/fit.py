"""One training, from its beginning or its last checkpoint to its end."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import full_model
from lightning_distill.screen import shown
from lightning_distill.training.checkpoint_callback import CheckpointCallback
from lightning_distill.training.checkpoint_io import (
    BEST,
    LAST,
    PREVIOUS,
    best_of,
    step_of,
    weights_of,
)
from lightning_distill.training.metrics_csv import truncate_curves
from lightning_distill.training.model_selection import LAST_WEIGHTS, ModelSelection
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.nonfinite_guard import SKIPPED
from lightning_distill.training.optimizers import check_optimizer
from lightning_distill.training.trainer import TrainerFactory

log = logging.getLogger(__name__)

CUT_SHORT = (
    "%s: cut short at step %s of %s, by trainer.max_time, early stopping, a callback or a limit of "
    "the trainer"
)


@dataclass(frozen=True)
class Training:
    """What came of a training. steps: optimizer steps made, of `max_steps` that were asked for.
    kept_step: the step whose weights the model has."""

    steps: int
    max_steps: int
    kept_step: int


def fit(
    trainers: TrainerFactory,
    module: TrainedModule,
    data: DistillationData,
    max_steps: int,
    folder: Path,
    loggers: list[Logger],
    role: str,
    selection: ModelSelection = LAST_WEIGHTS,
) -> Training:
    """Trains for `max_steps` optimizer steps, resuming from the folder's last checkpoint.

    0 leaves the model as it is.

    Where a batch does not fit into memory, it is divided into micro-batches; the optimizer step
    accumulates their gradients and stays the same. Raises ConfigError where the optimizer or the
    schedule refuses its settings.
    """
    if not max_steps:
        return Training(0, 0, 0)
    prefix = "" if role == "student" else f"{role}."
    check_optimizer(prefix, module.make_optimizer, module.make_schedule, max_steps)
    last = folder / "checkpoints" / LAST
    module.guard.max_in_a_row, module.guard.file = trainers.max_skipped_steps, folder / SKIPPED
    module.compiles = trainers.compile
    if trainers.gradient_checkpointing:
        module.model.gradient_checkpointing_enable({"use_reentrant": False})
    data.batch_size = trainers.batch_size
    # One run is one epoch of our loaders, however many passes over the examples that is.
    make_trainer = partial(
        trainers.trainer, folder, role, loggers, max_steps=max_steps, max_epochs=1
    )
    attempt = partial(_attempt, trainers, make_trainer, selection, module, data, last, role)
    while (steps := attempt()) is None:
        gc.collect()
        torch.cuda.empty_cache()
        if last.exists():
            truncate_curves(loggers, step_of(last))
    if trainers.gradient_checkpointing:
        module.model.gradient_checkpointing_disable()
    if process_group.is_rank_zero():
        (last.parent / PREVIOUS).unlink(missing_ok=True)
    if steps < max_steps:
        log.warning(CUT_SHORT, role, f"{steps:,}", f"{max_steps:,}")
    best = _load_best(module, last.with_name(BEST), role) if selection.keep_best else None
    return Training(steps, max_steps, steps if best is None else best)


def _load_best(module: TrainedModule, best: Path, role: str) -> int | None:
    """Returns the step of the best weights; None where no validation was made."""
    if not process_group.broadcast(best.exists()):
        log.warning("%s: the training had no validation, so its last weights are kept", role)
        return None
    nll, step = best_of(best)
    module.load_weights(weights_of(best))
    log.info("%s: keeps the weights of step %s, validation nll %.4f", role, step, nll)
    return step


def _attempt(
    trainers: TrainerFactory,
    make_trainer: Callable[..., L.Trainer],
    selection: ModelSelection,
    module: TrainedModule,
    data: DistillationData,
    last: Path,
    role: str,
) -> int | None:
    """The steps made when the training ended; None where smaller micro-batches may fit.

    last: the checkpoint to resume from.
    """
    checkpoints = CheckpointCallback(
        last, trainers.checkpoint_every_n_steps, trainers.checkpoint_every_n_minutes
    )
    counts = _counted_in_micro_batches(trainers, trainers.batch_size // data.batch_size)
    selecting = selection.callbacks(last.with_name(BEST))
    trainer = make_trainer([checkpoints, *selecting], **counts)
    start = process_group.broadcast(str(last) if last.exists() else None)
    if start:
        log.info("%s: resuming from step %s, %s", role, step_of(last), shown(last))
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not _divide_batch(data, trainers, trainer, role, last):
            raise
        module.abandon_step()
        trainer.strategy.optimizers = []  # their state is on the device
        return None
    if trainer.interrupted:
        raise KeyboardInterrupt
    return trainer.global_step


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU is out of memory, or the CPU's allocator, where it says so."""
    raised = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return raised or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _divide_batch(
    data: DistillationData, trainers: TrainerFactory, trainer: L.Trainer, role: str, last: Path
) -> bool:
    """Makes micro-batches smaller. False where they cannot be, or where steps would be lost."""
    size, step = data.batch_size, trainer.global_step
    if process_group.is_distributed() or size == 1 or (step and not last.exists()):
        log.error(
            "%s: a batch of %s does not fit into memory, at step %s. Set a smaller "
            "data.batch_size, with trainer.accumulate_grad_batches for the same step, or "
            "trainer.gradient_checkpointing=true",
            *(role, size, step + 1),
        )
        return False
    data.batch_size = next(less for less in range(size - 1, 0, -1) if size % less == 0)
    log.warning(
        "%s: a batch of %s does not fit into memory; %s micro-batches of %s make the same step",
        *(role, size, trainers.batch_size // data.batch_size, data.batch_size),
    )
    return True


def _counted_in_micro_batches(trainers: TrainerFactory, parts: int) -> dict[str, Any]:
    """The trainer's settings that count micro-batches, where each batch became `parts` of them."""
    counts: dict[str, Any] = {"accumulate_grad_batches": trainers.accumulate_grad_batches * parts}
    if isinstance(every := trainers.val_check_interval, int):
        counts["val_check_interval"] = every * parts
    return counts


def save_trained(model: PreTrainedModel, data: DistillationData, folder: Path) -> None:
    """Saves model and tokenizer as a Hugging Face folder, from rank 0."""
    full = full_model(model) if isinstance(model, FSDPModule) else model
    if process_group.is_rank_zero():
        data.save(full, folder)
    process_group.barrier()
