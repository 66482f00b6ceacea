"""One training, from its beginning or its last checkpoint to its end."""

import gc
import logging
from collections.abc import Callable
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
from lightning_distill.training.checkpoint_callback import CheckpointCallback
from lightning_distill.training.checkpoint_io import LAST, PREVIOUS, step_of
from lightning_distill.training.metrics_csv import truncate_curves
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.nonfinite_guard import SKIPPED
from lightning_distill.training.trainer import TrainerFactory

log = logging.getLogger(__name__)


def fit(
    trainers: TrainerFactory,
    module: TrainedModule,
    data: DistillationData,
    max_steps: int,
    folder: Path,
    loggers: list[Logger],
    role: str,
) -> None:
    """Trains for `max_steps` optimizer steps, resuming from the folder's last checkpoint.

    Where a batch does not fit into memory, it is divided into micro-batches; the optimizer step
    accumulates their gradients and stays the same.
    """
    last = folder / "checkpoints" / LAST
    module.guard.max_in_a_row, module.guard.file = trainers.max_skipped_steps, folder / SKIPPED
    module.compiles = trainers.compile
    if trainers.gradient_checkpointing:
        module.model.gradient_checkpointing_enable({"use_reentrant": False})
    data.batch_size = trainers.batch_size
    make_trainer = partial(trainers.trainer, folder, role, loggers, max_steps=max_steps)
    while not _attempt(trainers, make_trainer, module, data, last, role):
        gc.collect()
        torch.cuda.empty_cache()
        if last.exists():
            truncate_curves(loggers, step_of(last))
    if trainers.gradient_checkpointing:
        module.model.gradient_checkpointing_disable()
    if process_group.is_rank_zero():
        (last.parent / PREVIOUS).unlink(missing_ok=True)


def _attempt(
    trainers: TrainerFactory,
    make_trainer: Callable[..., L.Trainer],
    module: TrainedModule,
    data: DistillationData,
    last: Path,
    role: str,
) -> bool:
    """Whether the training came to its end; False where smaller micro-batches may fit.

    last: the checkpoint to resume from.
    """
    checkpoints = CheckpointCallback(
        last, trainers.checkpoint_every_n_steps, trainers.checkpoint_every_n_minutes
    )
    counts = _counted_in_micro_batches(trainers, trainers.batch_size // data.batch_size)
    trainer = make_trainer([checkpoints], **counts)
    start = process_group.broadcast(str(last) if last.exists() else None)
    if start:
        log.info("%s: resuming from step %s, %s", role, step_of(last), last)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not _divide_batch(data, trainers, trainer, role, last):
            raise
        module.abandon_step()
        trainer.strategy.optimizers = []  # their state is on the device
        return False
    if trainer.interrupted:
        raise KeyboardInterrupt
    return True


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
