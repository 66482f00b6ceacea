"""Lightning trainers, as the `trainer` group describes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lightning_distill.distributed import process_group
from lightning_distill.distributed.topology import Hardware
from lightning_distill.errors import ConfigError
from lightning_distill.training.checkpoint_io import AtomicCheckpointIO
from lightning_distill.training.progress_bar import progress_bar_callbacks


@dataclass(frozen=True)
class TrainerFactory:
    """Makes the trainer of each training, labeling or evaluation of a run.

    make: `lightning.Trainer` with the settings of the `trainer` group, as a partial.
    callbacks, plugins: make those that the user adds, anew for each trainer.
    batch_size: examples a micro-batch. val_check_interval: micro-batches, or a share of the run.
    max_skipped_steps: consecutive steps that may be skipped for NaN or Inf. identity: the settings
    that can change the weights that are trained.
    """

    make: Callable[..., L.Trainer]
    hardware: Hardware
    batch_size: int
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    val_check_interval: int | float | None = None
    matmul_precision: str = "highest"
    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every_n_steps: int = 200
    checkpoint_every_n_minutes: float = 10.0
    max_skipped_steps: int = 10
    callbacks: Callable[[], list[Callback]] = list
    plugins: Callable[[], list[Any]] = list
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def examples_per_step(self) -> int:
        """Of one optimizer step, over all devices."""
        return self.batch_size * self.accumulate_grad_batches * self.hardware.num_devices

    def trainer(
        self,
        folder: Path,
        role: str,
        loggers: list[Logger] | None = None,
        callbacks: list[Callback] | None = None,
        **overrides: Any,
    ) -> L.Trainer:
        """role: what the progress bar calls it. overrides: arguments of `lightning.Trainer`.

        Raises ConfigError where this machine lacks what `trainer` asks for.
        """
        if problem := self.hardware.problem():
            raise ConfigError(f"{problem}.")
        torch.set_float32_matmul_precision(self.matmul_precision)
        if not process_group.is_distributed():
            overrides |= {"num_nodes": 1, "strategy": "auto"}
            if self.hardware.local_devices > 1:  # a dry run of what several devices will do
                overrides["devices"] = 1
        bar = progress_bar_callbacks(role)
        return self.make(
            logger=loggers or False,
            callbacks=[*self.callbacks(), *(callbacks or []), *bar],
            plugins=[*self.plugins(), AtomicCheckpointIO()],
            enable_progress_bar=bool(bar),
            enable_checkpointing=bool(callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our loaders divide the examples among the devices
            default_root_dir=str(folder),
            **overrides,
        )
