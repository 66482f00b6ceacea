"""Metrics of one model on the held-out split, with torchmetrics' accumulators."""

import math
import re
import sys

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional.text import rouge_score

from lightning_distill.losses.chunked import block_rows
from lightning_distill.losses.divergences.forward_kl import forward_kl

MAX_LOG = math.log(sys.float_info.max)
BINS = 15  # of the calibration error (Guo et al. 2017)


class CalibrationError(Metric):
    """The expected one (ECE, Guo et al. 2017, eq. 3): |accuracy − confidence| of the most probable
    class, averaged over 15 bins of confidence.

    torchmetrics' own keeps two small tensors an update. Between the logits of one update and the
    next they have the allocator hold on to both, by gigabytes over a long text.
    """

    full_state_update = False
    reliability: list[dict[str, float]] | None = None  # set by `compute`, see there
    correct: Tensor  # of each bin, the number of correct predictions; of confidence 1, a bin more
    confidence: Tensor  # of each bin, the sum of confidences
    rounding: Tensor  # what float32 loses of that sum (Neumaier 1974); not every GPU has float64
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "count"):
            self.add_state(name, torch.zeros(BINS + 1, dtype=torch.long), "sum")
        for name in ("confidence", "rounding"):
            self.add_state(name, torch.zeros(BINS + 1), "sum")

    def update(self, probs: Tensor, labels: Tensor, predicted: Tensor | None = None) -> None:
        """probs: [N, V]; or [N], of the most probable classes, which are `predicted` [N].

        labels: [N].
        """
        confidence = probs.float()
        if predicted is None:
            confidence, predicted = confidence.max(-1)
        edges = torch.linspace(0, 1, BINS + 1, device=labels.device)
        bins = torch.bucketize(confidence, edges, right=True) - 1
        self.correct.index_add_(0, bins, (predicted == labels).long())
        self.count.index_add_(0, bins, torch.ones_like(bins))
        wide = torch.float32 if labels.device.type == "mps" else torch.float64  # MPS has no other
        exact = torch.zeros(BINS + 1, dtype=wide, device=labels.device)
        exact.index_add_(0, bins, confidence.to(wide))
        added = exact.float()
        total = self.confidence + added
        # Both are at least 0, so the larger of them in size is their maximum.
        self.rounding += torch.maximum(self.confidence, added) - total
        self.rounding += torch.minimum(self.confidence, added) + (exact - added).float()
        self.confidence = total

    def compute(self) -> Tensor:
        """The error. `reliability` is then, for each bin with predictions, their number, mean
        confidence and accuracy: a reliability diagram."""
        confidence = self.confidence.cpu().double() + self.rounding.cpu().double()
        correct, count = self.correct.cpu().double(), self.count.cpu()
        bins = zip(confidence.tolist(), correct.tolist(), count.tolist(), strict=True)
        self.reliability = [
            {"count": n, "confidence": total / n, "accuracy": hits / n}
            for total, hits, n in bins
            if n
        ]
        return (correct - confidence).abs().sum() / count.sum()


class Quality(nn.Module):
    """One model against the text: nll in nats a token, perplexity, bits a byte, calibration error.

    bytes_per_token: None where only some of the tokens are predicted; then no bits a byte.
    """

    def __init__(self, bytes_per_token: float | None = None) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token
        self.nll = MeanMetric()
        self.calibration = CalibrationError()

    def update(self, log_probs: Tensor, labels: Tensor) -> None:
        """log_probs: [N, V], labels: [N]."""
        self.nll.update(-log_probs.gather(1, labels[:, None]))
        top, predicted = log_probs.float().max(-1)
        self.calibration.update(top.exp(), labels, predicted)

    def compute(self) -> dict[str, float]:
        nll = float(self.nll.compute())
        each = self.bytes_per_token
        return {
            "nll": nll,
            "perplexity": math.exp(nll) if nll < MAX_LOG else math.inf,
            **({"bits_per_byte": nll / math.log(2) / each} if each else {}),
            "calibration_error": float(self.calibration.compute()),
        }


class ClassQuality(nn.Module):
    """One classifier against the labels: nll in nats an example, accuracy, F1 (the mean over
    classes), calibration error.

    omitted: a class that the student was never shown, and its frequency among all. Then also how
    much of it is recognised, as it is (`omitted_accuracy`) and with the bias of that class moved
    until it is predicted as often as it occurs (`corrected_omitted_accuracy`, and of all classes
    `corrected_accuracy`), which takes no label (Hinton et al. 2015, section 3).
    """

    def __init__(
        self, num_classes: int, omitted: int | None = None, frequency: float = 0.0
    ) -> None:
        super().__init__()
        self.omitted, self.frequency = omitted, frequency
        if omitted is not None:
            self.log_probs, self.labels = CatMetric(), CatMetric()
        self.nll = MeanMetric()
        self.scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
                "calibration_error": CalibrationError(),
            },
            compute_groups=False,
        )

    def update(self, log_probs: Tensor, labels: Tensor) -> None:
        """log_probs: [N, C], labels: [N]."""
        self.nll.update(-log_probs.gather(1, labels[:, None]))
        self.scores.update(log_probs.exp(), labels)
        if self.omitted is not None:
            self.log_probs.update(log_probs)
            self.labels.update(labels)

    def compute(self) -> dict[str, float]:
        scores = {key: float(x) for key, x in self.scores.compute().items()}
        if self.omitted is not None:
            scores |= omitted_class(
                self.log_probs.compute(), self.labels.compute(), self.omitted, self.frequency
            )
        return {"nll": float(self.nll.compute()), **scores}


def omitted_class(
    log_probs: Tensor, labels: Tensor, omitted: int, frequency: float
) -> dict[str, float]:
    """log_probs: [N, C], labels: [N]. See `ClassQuality`."""
    omitted_log_probs = log_probs[:, omitted]
    others = log_probs.clone()
    others[:, omitted] = -math.inf
    best, rival = others.max(-1)
    behind = best - omitted_log_probs  # by how much its bias has to rise for it to be predicted
    count = round(frequency * len(labels))
    bias = behind.sort().values[max(0, count - 1)]
    is_omitted = labels == omitted
    corrected = torch.where(behind <= bias, omitted, rival)
    return {
        "omitted_accuracy": float((behind < 0)[is_omitted].float().mean()),
        "corrected_omitted_accuracy": float((corrected == omitted)[is_omitted].float().mean()),
        "corrected_accuracy": float((corrected == labels).float().mean()),
        "bias_correction": float(bias),
    }


class Likeness(nn.Module):
    """A student against its teacher: how often both favour the same class, and KL(p ‖ q)."""

    def __init__(self) -> None:
        super().__init__()
        self.agreement = MeanMetric()
        self.kl = MeanMetric()

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Log-probabilities, both [N, V]."""
        self.agreement.update((student.max(-1).indices == teacher.max(-1).indices).float())
        rows = block_rows(student)  # which stay in the cache of a CPU
        blocks = zip(student.split(rows), teacher.split(rows), strict=True)
        self.kl.update(torch.cat([forward_kl(*block) for block in blocks]))

    def compute(self) -> dict[str, float]:
        return {
            "teacher_agreement": float(self.agreement.compute()),
            "teacher_kl": float(self.kl.compute()),
        }


def rouge_l(written: list[str], references: list[str]) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, averaged over pairs.

    written, references: at least one, and as many of each. From 0 to 1. Words are runs of letters
    and digits of any script, in lower case; of English text they are those of `rouge-score`.
    """
    if len(written) != len(references):
        raise ValueError(f"{len(written)} texts for {len(references)} references")
    scores = rouge_score(
        written,
        references,
        rouge_keys="rougeL",  # rougeLsum would need nltk and a download
        normalizer=lambda text: re.sub(r"[\W_]+", " ", text.lower()),
    )
    return float(scores["rougeL_fmeasure"])
