"""Scores of models on held-out examples, from one pass over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lightning_distill.constants import IGNORED
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed.fsdp import uses_fsdp
from lightning_distill.losses.ensemble import mean_of
from lightning_distill.metrics.quality import CalibrationError, Likeness
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.inspection import count_parameters
from lightning_distill.models.sharding import shard
from lightning_distill.training.teacher import Teacher

POSITIONS, LOGITS = 512, 2**22  # that are held at a time, at most
MIN_POSITIONS = 128  # for which a matrix product reaches its full rate


class Evaluation(L.LightningModule):
    """Runs student, teacher or both over the same batches; `trainer.test` drives it.

    models: of each role, one or several whose probabilities are averaged by `weights`.
    quality: makes the metrics of one role.
    parts: the source of each example [N], and the sources' names, for scores of each; or None.
    """

    def __init__(
        self,
        models: dict[str, list[Frozen]],
        weights: list[float],
        quality: Callable[[], nn.Module],
        parts: tuple[Tensor, list[str]] | None = None,
    ) -> None:
        super().__init__()
        self.part_of: Tensor | None = parts[0] if parts else None
        self.names = parts[1] if parts else []
        self.by_source: Any = nn.ModuleDict(
            {k: nn.ModuleList([quality() for _ in self.names]) for k in models}
        )
        self.models: Any = nn.ModuleDict({k: nn.ModuleList(m) for k, m in models.items()})
        self.quality: Any = nn.ModuleDict({k: quality() for k in models})
        self.likeness = Likeness() if len(models) == 2 else None
        self.weights = weights
        self.scores: dict[str, dict[str, Any]] = {}
        self.reliability: dict[str, list[dict[str, float]]] = {}  # the bins of each role's ECE

    def configure_model(self) -> None:
        if uses_fsdp(self.trainer):
            shard(self, [one.predict for models in self.models.values() for one in models])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        labels = batch["labels"].flatten()
        outputs = {role: [model(batch) for model in models] for role, models in self.models.items()}
        # A few positions at a time: the logits of a whole batch may not fit into memory.
        widest = max(one.vocab_size for each in outputs.values() for one in each)
        count = min(POSITIONS, max(MIN_POSITIONS, LOGITS // widest))
        for kept in (labels != IGNORED).nonzero()[:, 0].split(count):
            if not len(kept):  # padding that gives each rank as many examples
                continue
            log_probs = {}
            for role, predictions in outputs.items():
                each = [F.log_softmax(one.at(kept).logits(), dim=-1) for one in predictions]
                log_probs[role] = mean_of(each, self.weights)
                self.quality[role].update(log_probs[role], labels[kept])
                self._update_sources(role, log_probs[role], labels[kept], kept, batch)
            if self.likeness:
                self.likeness.update(log_probs["student"], log_probs["teacher"])

    def _update_sources(
        self, role: str, log_probs: Tensor, labels: Tensor, kept: Tensor, batch: dict[str, Tensor]
    ) -> None:
        """log_probs: [N, V], labels: [N], kept: [N] their places in the batch's labels."""
        if self.part_of is None:
            return
        examples = kept.cpu() // batch["labels"][0].numel()
        parts = self.part_of[batch["block"].cpu()[examples]].to(labels.device)
        for number, metric in enumerate(self.by_source[role]):
            of_source = parts == number
            if of_source.any():
                metric.update(log_probs[of_source], labels[of_source])

    def on_test_epoch_end(self) -> None:
        """Computes over all devices, while the metrics are still on them."""
        self.scores = {role: quality.compute() for role, quality in self.quality.items()}
        for role, quality in self.quality.items():
            for metric in quality.modules():
                if isinstance(metric, CalibrationError) and metric.reliability:
                    self.reliability[role] = metric.reliability
        present = [] if self.part_of is None else self.part_of.unique().tolist()
        for role in self.models if present else ():
            scores = {self.names[n]: self.by_source[role][n].compute() for n in present}
            for one in scores.values():  # the bytes of a token are of all sources
                one.pop("bits_per_byte", None)
            self.scores[role]["sources"] = scores
        if self.likeness:
            self.scores["student"] |= self.likeness.compute()


@dataclass
class SplitScores:
    """What the test split says of student and teacher.

    scores: of each role; None for a model that there is not. nll is in nats per prediction, each
    model in its own tokens. Agreement and KL are there where the two share their tokens.
    reliability: of each role the bins of its calibration error.
    """

    scores: dict[str, dict[str, Any] | None]
    reliability: dict[str, list[dict[str, float]]]


def evaluate(
    trainer: L.Trainer,
    data: DistillationData,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
) -> SplitScores:
    """Runs `teacher` and `student` over the test split once."""
    scores: dict[str, dict[str, Any] | None] = {"teacher": None, "student": None}
    reliability: dict[str, list[dict[str, float]]] = {}
    passes: list[tuple[DistillationData, dict[str, list[Frozen]]]] = []
    if student is not None:
        passes.append((data, {"student": [Frozen(student, data.num_classes)]}))
    if teacher is not None:
        if not passes or teacher.data is not data:
            passes.append((teacher.data, {}))
        passes[-1][1]["teacher"] = teacher.frozen()
    for examples, models in passes:
        weights = teacher.weights if teacher else [1.0]
        mixture = examples.mixture
        parts = (examples.part_of("test"), mixture.names) if mixture else None
        evaluation = Evaluation(models, weights, examples.quality_metric, parts)
        trainer.test(evaluation, examples, verbose=False)
        for role, role_scores in evaluation.scores.items():
            size = sum(count_parameters(one.model) for one in models[role])
            scores[role] = {"parameters": size, **role_scores}
        reliability |= evaluation.reliability
    return SplitScores(scores, reliability)
