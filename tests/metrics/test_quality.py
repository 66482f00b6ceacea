import math
import random
import re

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_distill.constants import IGNORED
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.metrics.quality import (
    BINS,
    CalibrationError,
    ClassQuality,
    Likeness,
    Quality,
    rouge_l,
)

V = 7


@pytest.fixture
def batches():
    """Two batches of unequal numbers of counted positions."""
    torch.manual_seed(0)
    found = []
    for count in (40, 3):
        labels = torch.randint(V, (2, 40))
        labels[:, count:] = IGNORED
        found.append((torch.randn(2, 40, V) * 2, labels))
    return found


def kept_log_probs(logits, labels, vocab):
    """Log-probabilities [N, V] and labels [N] of the positions that count."""
    kept = labels != IGNORED
    return logits[kept][:, :vocab].log_softmax(-1), labels[kept]


def measured(batches, bytes_per_token=3.0):
    quality = Quality(bytes_per_token)
    rows = [kept_log_probs(logits, labels, V) for logits, labels in batches]
    for log_probs, labels in rows:
        quality.update(log_probs, labels)
    log_probs, labels = (torch.cat(x) for x in zip(*rows, strict=True))
    return quality.compute(), log_probs, labels


def test_nll_is_the_mean_over_all_tokens_not_over_batches(batches):
    found, log_probs, labels = measured(batches)
    expected = -sum(float(log_probs[i, y]) for i, y in enumerate(labels)) / len(labels)
    assert len(labels) == 86
    assert found["nll"] == pytest.approx(expected, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(expected / math.log(2) / 3.0, rel=1e-6)


def test_nll_is_what_transformers_calls_the_loss():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2)).eval()
    ids = torch.randint(V, (2, 12))
    theirs = model(ids, labels=ids).loss
    ours, _, _ = measured([(model(ids[:, :-1]).logits.detach(), ids[:, 1:])])
    assert ours["nll"] == pytest.approx(float(theirs), rel=1e-5)


def test_calibration_error_by_hand(batches):
    found, log_probs, labels = measured(batches)
    confidence, guess = log_probs.exp().max(-1)
    error = 0.0
    for b in range(BINS):
        inside = [i for i, c in enumerate(confidence) if b / BINS < float(c) <= (b + 1) / BINS]
        if inside:
            accuracy = sum(int(guess[i] == labels[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            error += len(inside) / len(labels) * abs(accuracy - mean)
    assert found["calibration_error"] == pytest.approx(error, abs=1e-5)


def test_calibration_error_is_that_of_torchmetrics_and_keeps_no_prediction():
    ours, theirs = CalibrationError(), MulticlassCalibrationError(V, BINS, "l1")
    size = sum(state.numel() for state in ours.metric_state.values())
    for count in (300, 1, 40):
        logits, labels = 3 * torch.randn(count, V), torch.randint(V, (count,))
        logits[:3] *= 1000  # of these the most probable class has all of it
        for metric in (ours, theirs):
            metric.update(logits.softmax(-1), labels)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert sum(state.numel() for state in ours.metric_state.values()) == size


def test_a_model_agrees_with_itself(batches):
    likeness = Likeness()
    log_probs, _ = kept_log_probs(*batches[0], V)
    likeness.update(log_probs, log_probs)
    found = likeness.compute()
    assert found["teacher_agreement"] == 1.0
    assert found["teacher_kl"] == pytest.approx(0, abs=1e-6)


def test_likeness_is_measured_from_the_teacher(batches):
    likeness = Likeness()
    (a, _), (b, _) = (
        kept_log_probs(torch.randn(1, 9, V), torch.zeros(1, 9).long(), V) for _ in "12"
    )
    likeness.update(a, b)
    expected = float(forward_kl(a, b).mean())
    assert likeness.compute()["teacher_kl"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(float(forward_kl(b, a).mean()), rel=1e-2)


def test_rouge_l_by_hand():
    # "the cat on the mat" is in both: 5 of 6 words that way, 5 of 7 the other.
    one = rouge_l(["The cat sat on the mat."], ["the cat is, now, on the mat"])
    assert one == pytest.approx(2 * (5 / 6) * (5 / 7) / (5 / 6 + 5 / 7))
    pairs = ["the cat sat", "nothing", "", "same words"], ["sat the cat", "else", "a", "Same words"]
    assert rouge_l(*pairs) == pytest.approx((2 / 3 + 0 + 0 + 1) / 4)


def longest_common(a, b):
    """How many words the longest common subsequence has, by its definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def test_rouge_l_is_the_mean_over_pairs_of_words_in_any_spelling():
    dice = random.Random(0)
    words = ["snake_case", "it's", "a", "the", "on", "3.5", "cat,", "model!", "Model", "sat-down"]
    texts = [" ".join(dice.choices(words, k=dice.randint(1, 6))) for _ in range(40)]
    total = 0.0
    for pair in zip(texts[:20], texts[20:], strict=True):
        one, other = (re.findall("[a-z0-9]+", text.lower()) for text in pair)
        total += 2 * longest_common(one, other) / (len(one) + len(other))
    assert rouge_l(texts[:20], texts[20:]) == pytest.approx(total / 20)


def test_rouge_l_reads_other_scripts_too():
    assert rouge_l(["Größe über alles"], ["größe über nichts"]) == pytest.approx(2 / 3)
    assert rouge_l(["модель учит"], ["модель спит"]) == pytest.approx(1 / 2)


def test_the_calibration_error_does_not_lose_small_numbers_in_large_sums():
    """Three tokens 10⁵ times in each of 134 updates; a float32 sum is 29 % off by then."""
    error = CalibrationError()
    probs = torch.tensor([[0.7, 0.3]]).expand(300_000, 2)
    labels = torch.tensor([0, 0, 1]).repeat(100_000)
    for _ in range(134):
        error.update(probs, labels)
    assert float(error.compute()) == pytest.approx(0.7 - 2 / 3, rel=1e-5)


def test_scores_follow_each_update(recwarn):
    quality, labels = Quality(), torch.tensor([0])
    for probs, gap in ([0.7, 0.3], 0.3), ([0.1, 0.9], 0.6):
        quality.update(torch.tensor([probs]).log(), labels)
        assert quality.compute()["calibration_error"] == pytest.approx(gap)
    assert not [one for one in recwarn if "before the ``update``" in str(one.message)]


@pytest.mark.parametrize("nll", [700.0, 709.0, 710.0, math.inf])
def test_perplexity_is_the_exponential_of_any_nll(nll):
    quality = Quality()
    quality.update(torch.tensor([[-nll, 0.0]]), torch.tensor([0]))
    expected = math.exp(nll) if nll < 709.7 else math.inf
    assert quality.compute()["perplexity"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [1, 1, 1, 1], [0, 0, 2, 2], [2]])
def test_f1_and_accuracy_are_scikit_learns(labels):
    sklearn = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(len(labels))
    log_probs = torch.randn(len(labels), 3).log_softmax(-1)
    quality = ClassQuality(3)
    quality.update(log_probs, torch.tensor(labels))
    predicted = log_probs.argmax(-1).tolist()
    scores = quality.compute()
    expected = sklearn.f1_score(labels, predicted, average="macro")
    assert scores["f1"] == pytest.approx(expected)
    assert scores["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))


def test_all_metrics_are_their_formulas_in_float64():
    """For a vocabulary whose positions are compared in several blocks."""
    vocab, count = 9000, 300
    student = (3 * torch.randn(count, vocab)).log_softmax(-1)
    teacher = (student + torch.randn(count, vocab)).log_softmax(-1)
    labels = torch.randint(vocab, (count,))
    quality, likeness = Quality(), Likeness()
    quality.update(student, labels)
    likeness.update(student, teacher)
    q, p = student.double(), teacher.double()
    scores = quality.compute() | likeness.compute()
    assert scores["nll"] == pytest.approx(float(-q[range(count), labels].mean()), rel=1e-6)
    assert scores["teacher_kl"] == pytest.approx(
        float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5
    )
    same = (q.argmax(-1) == p.argmax(-1)).double()
    assert scores["teacher_agreement"] == pytest.approx(float(same.mean()), rel=1e-6)
    top, predicted = q.exp().max(-1)
    bins = (top * BINS).long()
    hits = (predicted == labels).double()
    error = sum(abs(float((hits - top)[bins == b].sum())) for b in range(BINS)) / count
    assert scores["calibration_error"] == pytest.approx(error, rel=1e-5)
