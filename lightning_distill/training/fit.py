"""One training from its beginning or its last checkpoint to its end, on what `trainer` names."""

import gc
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import full_model
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError
from lightning_distill.training.checkpoint_callback import CheckpointCallback
from lightning_distill.training.checkpoint_io import BEFORE, LAST, AtomicCheckpointIO, step_of
from lightning_distill.training.metrics_csv import keep_curves
from lightning_distill.training.module import TrainedModule
from lightning_distill.training.nonfinite_guard import SKIPPED
from lightning_distill.training.progress_bar import progress

log = logging.getLogger(__name__)

# What of the trainer's node is not for Lightning.
OURS = ("compile", "gradient_checkpointing", "matmul_precision", "resume")


def fit(
    cfg: DictConfig,
    module: TrainedModule,
    data: DistillationData,
    max_steps: int,
    folder: Path,
    loggers: list[Logger],
    role: str,
) -> None:
    """Trains, from the folder's last checkpoint if an interrupted run left one.

    Batches that the device's memory does not hold are divided into micro-batches, of which a step
    takes as many more: it stays the same step.
    """
    last = folder / "checkpoints" / LAST
    module.guard.most, module.guard.file = cfg.max_skipped_steps, folder / SKIPPED
    module.compiles = bool(cfg.trainer.get("compile"))
    if cfg.trainer.get("gradient_checkpointing"):
        module.model.gradient_checkpointing_enable({"use_reentrant": False})
    data.batch_size = cfg.data.batch_size
    while True:
        kept = CheckpointCallback(
            last, cfg.checkpoint_every_n_steps, cfg.checkpoint_every_n_minutes
        )
        counted = _counted(cfg, cfg.data.batch_size // data.batch_size)
        trainer = make_trainer(cfg, folder, role, loggers, [kept], max_steps=max_steps, **counted)
        start = process_group.broadcast(str(last) if last.exists() else None)
        if start:
            log.info("%s: going on from step %s, %s", role, step_of(last), last)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=start)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not _divide(cfg, module, data, trainer, role, last):
                raise
        trainer.strategy.optimizers = []  # whose state is on the device
        gc.collect()
        torch.cuda.empty_cache()
        if last.exists():
            keep_curves(loggers, step_of(last))
    if cfg.trainer.get("gradient_checkpointing"):
        module.model.gradient_checkpointing_disable()
    if trainer.interrupted:
        raise KeyboardInterrupt
    if process_group.is_rank_zero():
        (last.parent / BEFORE).unlink(missing_ok=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of a processor as far as the system says so and does not end the process."""
    gone = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return gone or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _divide(
    cfg: DictConfig,
    module: TrainedModule,
    data: DistillationData,
    trainer: L.Trainer,
    role: str,
    last: Path,
) -> bool:
    """Makes batches smaller. Returns whether training can go on with that, and no step is lost."""
    size, step = data.batch_size, trainer.global_step
    if process_group.is_distributed() or size == 1 or (step and not last.exists()):
        log.error(
            "%s: a batch of %s does not fit into the memory, at step %s. Set a smaller "
            "data.batch_size, with trainer.accumulate_grad_batches for the same step, or "
            "trainer.gradient_checkpointing=true", role, size, step + 1,
        )  # fmt: skip
        return False
    data.batch_size = next(less for less in range(size - 1, 0, -1) if size % less == 0)
    parts = cfg.data.batch_size // data.batch_size
    log.warning(
        "%s: a batch of %s does not fit into the memory; %s micro-batches of %s make the same step",
        role, size, parts, data.batch_size,
    )  # fmt: skip
    module.break_off()
    return True


def _counted(cfg: DictConfig, parts: int) -> dict[str, Any]:
    """What of a trainer's settings counts micro-batches, where each has become so many."""
    found = {"accumulate_grad_batches": cfg.trainer.accumulate_grad_batches * parts}
    if isinstance(every := cfg.trainer.get("val_check_interval"), int):
        found["val_check_interval"] = every * parts
    return found


def save_trained(model: PreTrainedModel, data: DistillationData, folder: Path) -> None:
    """As a folder of the hub's kind, by rank 0."""
    plain = full_model(model) if isinstance(model, FSDPModule) else model
    if process_group.is_rank_zero():
        data.save(plain, folder)
    process_group.barrier()


def make_trainer(
    cfg: DictConfig,
    folder: Path,
    role: str,
    loggers: list[Logger] | None = None,
    callbacks: list[Any] | None = None,
    **settings: Any,
) -> L.Trainer:
    """Raises ConfigError where this machine lacks what `trainer` asks for."""
    nodes = [key for key in ("trainer", "teacher", "student") if key in cfg]
    hardware = Hardware.from_settings(
        {key: OmegaConf.to_container(cfg[key], resolve=True) for key in nodes}
    )
    if problem := hardware.problem():
        raise ConfigError(f"{problem}.")
    bar, theirs = progress(role), instantiate(cfg.trainer.get("callbacks") or [])
    torch.set_float32_matmul_precision(cfg.trainer.get("matmul_precision", "highest"))
    if not process_group.is_distributed():
        settings |= {"num_nodes": 1, "strategy": "auto"}
        if hardware.local_devices > 1:  # it looks ahead, at what others do together
            settings["devices"] = 1
    known = cfg.copy()
    with open_dict(known):
        for key in OURS:
            known.trainer.pop(key, None)
    return instantiate(
        known.trainer,
        logger=loggers or False,
        callbacks=[*theirs, *(callbacks or []), *bar],
        plugins=[*instantiate(cfg.trainer.get("plugins") or []), AtomicCheckpointIO()],
        enable_progress_bar=bool(bar),
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # each loader shares its examples out by itself
        default_root_dir=str(folder),
        **settings,
    )
