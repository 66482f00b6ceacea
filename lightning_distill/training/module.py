"""The LightningModule that teachers and students share.

It computes losses and configures the optimizer. What happens around an optimizer step are callbacks
of its own: `GradientMean`, `NonFiniteGuard` and `TrainingLogger`, in this order.
"""

import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lightning_distill.config.usual import USUAL
from lightning_distill.constants import IGNORED
from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import load_full_weights, uses_fsdp
from lightning_distill.losses.distributions import target_positions
from lightning_distill.losses.objective import Objective, nll
from lightning_distill.losses.terms import Terms
from lightning_distill.models.inspection import num_outputs, predicts_next_token
from lightning_distill.models.output_head import Predictor
from lightning_distill.models.predictions import Predictions
from lightning_distill.models.sharding import shard
from lightning_distill.training.gradient_mean import GradientMean, MeanOfSum, Step, parameters_of
from lightning_distill.training.nonfinite_guard import NonFiniteGuard
from lightning_distill.training.training_logger import TrainingLogger

VALIDATION_NLL = "validation/nll"  # in nats per token, averaged over the split
# The parameter that schedules of torch and transformers have for the number of steps.
RUN_LENGTH = ("total_steps", "num_training_steps")


class TrainedModule(L.LightningModule):
    """A model that is trained on an objective, averaged over the tokens of the global batch.

    Each micro-batch contributes the sum of its tokens' losses. `GradientMean` divides the gradient
    by the number of tokens once, before it is clipped. The step is then the same for one batch, for
    its micro-batches and for its shards on several devices. (A mean of the micro-batches' means
    would weigh a token by how many others its micro-batch holds.)

    Batches are those of transformers' collators: input_ids, attention_mask and labels [B, T], with
    -100 where nothing is predicted.
    optimizer: called with parameter groups; None for AdamW at the usual rate of pretrained models.
    schedule: called with the optimizer, and with the number of steps where it has a parameter for
        that; None for a constant rate.
    vocab_size: the number of tokens, or classes, that a prediction chooses among; None for all rows
        of the model's output.
    shifted_labels: whether labels[b, t] is what the model predicts at t, as in this package's data;
        else it is the token at t, as in transformers' collators.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Callable[..., Any] | None = None,
        vocab_size: int | None = None,
        shifted_labels: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        vocab_size = num_outputs(model) if vocab_size is None else vocab_size
        self.predict = Predictor(model, vocab_size, split=objective.fused)
        self.objective = objective
        self.make_optimizer = optimizer or partial(AdamW, lr=USUAL["lr"]["pretrained"])
        self.make_schedule = schedule or partial(ConstantLR, factor=1.0)
        self.shifts_labels = not shifted_labels and predicts_next_token(model)
        self.compiles = False
        self.validation_nll = MeanMetric()
        self.running_step = Step()
        self.guard = NonFiniteGuard()
        self.training_logger = TrainingLogger()
        self.tokens_seen: Tensor | int = 0  # by this device
        self.seconds_before = 0.0  # of training before the checkpoint that is resumed
        self._start = time.perf_counter()

    def forward(self, batch: dict[str, Tensor]) -> Predictions:
        return self.predict(batch)

    @property
    def predictors(self) -> list[Predictor]:
        """One for each model that the module calls."""
        return [self.predict]

    def configure_callbacks(self) -> list[Callback]:
        return [GradientMean(), self.guard, self.training_logger]

    def configure_model(self) -> None:
        if uses_fsdp(self.trainer):
            shard(self, self.predictors)
        if self.compiles:
            for predictor in self.predictors:
                predictor.compile()

    def on_before_batch_transfer(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        labels = batch["labels"]
        if self.shifts_labels:
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        # Here, where it needs no synchronization with a GPU.
        return {**batch, "labels": labels, "kept": target_positions(labels)}

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        total, tokens = nll(self(batch), batch["labels"])
        self.validation_nll.update(total / tokens.clamp(min=1), tokens)
        self.log(VALIDATION_NLL, self.validation_nll, prog_bar=True)

    def step(self, terms: Terms) -> Tensor:
        """The mean loss of one micro-batch, for Lightning to differentiate."""
        self.tokens_seen = self.tokens_seen + terms.tokens
        self.running_step.add(terms)
        loss: Tensor = MeanOfSum.apply(terms.total, terms.tokens)
        return loss

    def abandon_step(self) -> None:
        """Discards the running step and what was not saved since the last checkpoint."""
        self.zero_grad()
        self.running_step, self.tokens_seen = Step(), 0
        self.training_logger.reset()
        self.guard.reset()
        self.validation_nll.reset()

    def on_fit_start(self) -> None:
        self._start = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the batch's position in the run, so a resumed run repeats it.
        seed = getattr(self.trainer.datamodule, "seed", 0)  # type: ignore[attr-defined]
        seed = (seed << 48 | self.global_rank << 32 | batch_idx) % 2**63
        if self.device.type == "cpu":  # torch.manual_seed takes 2 ms where there is no GPU
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    @property
    def _frozen(self) -> dict[str, Tensor]:
        """The weights that adapters leave frozen. They are loaded again, not from checkpoints."""
        named = self.named_parameters(remove_duplicate=False)
        return {name: p.detach() for name, p in named if not p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in self._frozen:
            checkpoint["state_dict"].pop(name, None)
        self.guard.flush()
        spent = {"tokens": self.global_tokens_seen, "seconds": self.seconds_trained}
        checkpoint["spent"] = spent
        checkpoint["skipped"] = [self.guard.count, self.guard.in_a_row]
        if (nll := self.trainer.callback_metrics.get(VALIDATION_NLL)) is not None:
            checkpoint["validation_nll"] = float(nll)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes the weights of a checkpoint of this training, and nothing else of it."""
        load_full_weights(self, self._frozen | weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # absent where it was read into shards before
            checkpoint["state_dict"] = self._frozen | checkpoint["state_dict"]
        tokens = checkpoint["spent"]["tokens"]
        self.tokens_seen = tokens if process_group.is_rank_zero() else 0
        self.seconds_before = checkpoint["spent"]["seconds"]
        self.guard.count, self.guard.in_a_row = checkpoint.get("skipped", (0, 0))

    @property
    def global_tokens_seen(self) -> int:
        """Target tokens that all devices have trained on."""
        return sum(process_group.all_gather(int(self.tokens_seen)))

    @property
    def seconds_trained(self) -> float:
        """Without the time between an interruption and its resumption."""
        return self.seconds_before + time.perf_counter() - self._start

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        steps = self.trainer.max_steps
        return steps if steps > 0 else int(self.trainer.estimated_stepping_batches)

    @property
    def logs_now(self) -> bool:
        """Whether the running step will be logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # `GradientMean` has computed the norm. Lightning would compute it again, and refuses a
        # fused optimizer in any mixed precision, for a gradient scaling that only 16-mixed has.
        if self.trainer.precision != "16-mixed" and gradient_clip_algorithm in (None, "norm"):
            if gradient_clip_val:
                norm = self.running_step.norm
                clip_grads_with_norm_(parameters_of(optimizer), gradient_clip_val, norm)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        # Weight decay pulls matrices towards zero; on the norms' gains it would do harm.
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = self.make_optimizer([group for group in groups if group["params"]])
        accepted = inspect.signature(self.make_schedule).parameters
        length = {name: self.num_steps for name in RUN_LENGTH if name in accepted}
        schedule = self.make_schedule(optimizer, **length)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
