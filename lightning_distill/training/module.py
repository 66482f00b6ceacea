"""What training a teacher and training a student have in common."""

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import full_tensor, local_tensor, uses_fsdp
from lightning_distill.losses.objective import Objective, nll, target_positions
from lightning_distill.losses.terms import Terms
from lightning_distill.models.output_head import Predictions, Predictor
from lightning_distill.models.sharding import shard
from lightning_distill.training.nonfinite_guard import NonFiniteGuard

log = logging.getLogger(__name__)

# Keeps sums over tokens within the range of 16-bit gradients; a power of two rounds nothing.
UNIT = 2.0**-10

# What torch's and transformers' schedules call the number of steps.
RUN_LENGTH = ("total_steps", "num_training_steps")


class TrainedModule(L.LightningModule):
    """A model under an objective whose average is over the predictions of the global batch.

    An average of the micro-batches' averages would weigh a token by how few others its
    micro-batch happens to hold. So each micro-batch contributes its sum, and the gradient is
    divided by the number of tokens once, before it is clipped: the same step for one batch, for
    its micro-batches and for its shards on several devices.

    vocab_size: the tokens, or classes, that a prediction chooses among.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.predict = Predictor(model, vocab_size, split=objective.fused)
        self.objective = objective
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.compiles = False
        self.validation_nll = MeanMetric()
        self.guard = NonFiniteGuard()
        self._step: dict[str, tuple[Tensor | int, Tensor | int]] = {}
        self._sums: dict[str, tuple[Tensor | int, Tensor | int]] = {}  # of steps since the last log
        self.tokens_seen: Tensor | int = 0
        self.seconds_before = 0.0  # of training, ahead of the checkpoint gone on from
        self._start = time.perf_counter()
        self._details: tuple[dict[str, Tensor], Tensor | int] = {}, 0
        self._clock = (time.perf_counter(), 0, 0.0)

    def forward(self, batch: dict[str, Tensor]) -> Predictions:
        return self.predict(batch)

    @property
    def predictors(self) -> list[Predictor]:
        """What calls each model."""
        return [self.predict]

    def configure_model(self) -> None:
        if uses_fsdp(self.trainer):
            shard(self, self.predictors)
        if self.compiles:
            for predictor in self.predictors:
                predictor.compile()

    def on_before_batch_transfer(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        return {
            **batch,
            "kept": target_positions(batch["labels"]),
        }  # as long as they are on the processor

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        total, tokens = nll(self(batch), batch["labels"])
        self.validation_nll.update(total / tokens.clamp(min=1), tokens)
        self.log("validation/nll", self.validation_nll, prog_bar=True)

    def step(self, terms: Terms) -> Tensor:
        """The loss of one micro-batch, as something for Lightning to differentiate."""
        self.tokens_seen = self.tokens_seen + terms.tokens
        # Each over the tokens that it is of: some micro-batches lack a term.
        for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
            total, tokens = self._step.get(name, (0, 0))
            self._step[name] = total + value, tokens + terms.tokens
        self._details = terms.details, terms.tokens
        return terms.total * UNIT

    def break_off(self) -> None:
        """Forgets the step that was being made, and those that are not saved."""
        self.zero_grad()
        self._step, self._sums, self.tokens_seen = {}, {}, 0
        self._details, self._clock = ({}, 0), (time.perf_counter(), 0, 0.0)
        self.guard.break_off()
        self.validation_nll.reset()

    def on_fit_start(self) -> None:
        self._start = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout follows from the place in the run, so a run that was interrupted goes on alike.
        seed = getattr(self.trainer.datamodule, "seed", 0)  # type: ignore[attr-defined]
        torch.manual_seed((seed << 48 | self.global_rank << 32 | batch_idx) % 2**63)
        self.guard.note(batch)

    def on_train_epoch_end(self) -> None:
        """Of the run, before its last state is saved."""
        self.guard.settle()
        broken = not all(local_tensor(p).isfinite().all() for p in self.parameters())
        if process_group.any_rank(broken) or self.guard.in_a_row > 1:
            raise self.guard.diverged(self.global_step)

    @property
    def _frozen(self) -> dict[str, Tensor]:
        """The weights beside adapters, which are where they were loaded from."""
        named = self.named_parameters(remove_duplicate=False)
        return {name: p.detach() for name, p in named if not p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in self._frozen:
            checkpoint["state_dict"].pop(name, None)
        self.guard.settle()
        seconds = self.seconds_before + time.perf_counter() - self._start
        checkpoint["spent"] = {"tokens": self.tokens_of_all, "seconds": seconds}
        checkpoint["skipped"] = [self.guard.count, self.guard.in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # else it was read into the shards before
            checkpoint["state_dict"] = self._frozen | checkpoint["state_dict"]
        self.tokens_seen = checkpoint["spent"]["tokens"] if process_group.is_rank_zero() else 0
        self.seconds_before = checkpoint["spent"]["seconds"]
        self.guard.count, self.guard.in_a_row = checkpoint.get("skipped", (0, 0))

    @property
    def tokens_of_all(self) -> int:
        """Target tokens that all devices have trained on."""
        return sum(process_group.all_gather(int(self.tokens_seen)))

    @property
    def logs_now(self) -> bool:
        """Whether the step that is being made will be logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        trainer = self.trainer
        step, self._step = self._step, {}
        loss, tokens = self._over_all(*step["loss"])
        # Lightning divided by the number of micro-batches, the strategy by that of devices.
        factor = trainer.accumulate_grad_batches * trainer.world_size / UNIT / tokens.clamp(min=1)
        gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
        torch._foreach_mul_([local_tensor(gradient) for gradient in gradients], factor)
        self._norm = get_total_norm(gradients)
        norm = full_tensor(self._norm)
        if trainer.precision != "16-mixed":  # whose scaler leaves out steps until it fits
            sharded = uses_fsdp(trainer)
            good = self.guard.judge(self.global_step + 1, optimizer, loss, norm, sharded)
            step = {
                k: (torch.as_tensor(total).where(good, 0), n * good)
                for k, (total, n) in step.items()
            }
        for name, (total, count) in step.items():
            before, counted = self._sums.get(name, (0, 0))
            self._sums[name] = before + total, counted + count
        if self.logs_now:
            self._log_training(optimizer, norm)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The norm is known. And Lightning refuses a fused optimizer in any mixed precision, for a
        # scaling of gradients that only 16-mixed has.
        if self.trainer.precision != "16-mixed" and gradient_clip_algorithm in (None, "norm"):
            if gradient_clip_val:
                clip_grads_with_norm_(_parameters(optimizer), gradient_clip_val, self._norm)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        # Weight decay pulls matrices towards zero; on the norms' gains it would do harm.
        trained = [p for p in self.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = self.make_optimizer([g for g in groups if g["params"]])
        known = inspect.signature(self.make_schedule).parameters
        length = {name: self.trainer.max_steps for name in RUN_LENGTH if name in known}
        schedule = self.make_schedule(optimizer, **length)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _log_training(self, optimizer: Optimizer, gradient_norm: Tensor) -> None:
        sums, self._sums = self._sums, {}
        (details, of_tokens), self._details = self._details, ({}, 0)
        if self.trainer.world_size > 1:
            for name, (total, count) in sums.items():
                sums[name] = self._over_all(total, count)
            details = {name: self._mean_over_all(name, x, of_tokens) for name, x in details.items()}
        self.guard.settle()
        tokens = sums["loss"][1]
        values: dict[str, Any] = {}
        if tokens:
            values |= {name: total / n for name, (total, n) in sums.items()}
        if not self.guard.in_a_row:
            values |= details | {"gradient_norm": gradient_norm}
        if self.guard.count:
            values["skipped_steps"] = float(self.guard.count)
        values["learning_rate"] = optimizer.param_groups[0]["lr"]
        waited = getattr(self.trainer.train_dataloader, "wait_seconds", 0.0)
        now, before = (time.perf_counter(), self.global_step + 1, waited), self._clock
        if before[1]:  # the first interval includes the start-up
            values["tokens_per_second"] = tokens / (now[0] - before[0])
            values["data_seconds"] = (waited - before[2]) / (now[1] - before[1])  # a step
        self._clock = now
        self.log_dict({f"train/{name}": value for name, value in values.items()})
        if "loss" in values:
            self.log("loss", values["loss"], prog_bar=True, logger=False)

    def _over_all(self, total: Tensor | int, count: Tensor | int) -> tuple[Tensor, Tensor]:
        """Both, summed over all devices."""
        own = torch.stack([torch.as_tensor(x, device=self.device).float() for x in (total, count)])
        summed, counted = self.trainer.strategy.reduce(own, reduce_op="sum")
        return summed, counted

    def _mean_over_all(self, name: str, value: Tensor, tokens: Tensor | int) -> Tensor:
        """Of what is an average over tokens, or a norm divided by their number."""
        is_norm = name.endswith("_norm")
        part = value * tokens
        total, count = self._over_all(part.square() if is_norm else part, tokens)
        return (total.sqrt() if is_norm else total) / count.clamp(min=1)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In its order, in which Lightning sums their norm up too."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
