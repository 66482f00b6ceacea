"""The objective against the same written out longhand, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_distill.errors import ConfigError
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.divergences.logit_mse import logit_mse
from lightning_distill.losses.hidden_states import HiddenStates
from lightning_distill.losses.objective import Objective
from lightning_distill.losses.relations import Relations
from lightning_distill.models.predictions import Predictions

B, T, V = 2, 3, 5


def make(**settings):
    """The objective, called with logits: student, teacher, labels."""
    defaults = {"temperature": 1.0, "alpha": 1.0, "hard_weight": 1.0, "hard_target": "labels"}
    objective = Objective(forward_kl, **{**defaults, **settings})

    def of_logits(student, teacher, labels, vocab=V, **details):
        teachers = [] if teacher is None else [Predictions(teacher, None, vocab)]
        return objective.terms(Predictions(student, None, vocab), teachers, labels, **details)

    of_logits.needs_teacher = objective.needs_teacher
    return of_logits


@pytest.fixture
def batch():
    student = torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(B, T, V, dtype=torch.float64)
    labels = torch.tensor([[0, -100, 4], [2, 1, -100]])
    return student, teacher, labels


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def longhand(student, teacher, labels, temperature, alpha, hard_weight, hard_target, vocab=V):
    """Σ over unmasked positions of hard_weight · H(t, q) + alpha · T² · KL(p_T ‖ q_T)."""
    total = 0.0
    for b in range(B):
        for t in range(T):
            label = int(labels[b, t])
            if label == -100:
                continue
            z, y = student[b, t].tolist()[:vocab], teacher[b, t].tolist()[:vocab]
            p, q = softmax(y, 1.0), softmax(z, 1.0)
            if hard_target == "labels":
                hard = -math.log(q[label])
            else:
                hard = sum(pi * (math.log(pi) - math.log(qi)) for pi, qi in zip(p, q, strict=True))
            p_T, q_T = softmax(y, temperature), softmax(z, temperature)
            soft = sum(pi * (math.log(pi) - math.log(qi)) for pi, qi in zip(p_T, q_T, strict=True))
            total += hard_weight * hard + alpha * temperature**2 * soft
    return total


@pytest.mark.parametrize("hard_target", ["labels", "teacher"])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.5), (4.0, 3.0), (0.5, 0.0)])
@pytest.mark.parametrize("hard_weight", [1.0, 0.3])
def test_it_equals_the_formula_written_out(batch, hard_target, temperature, alpha, hard_weight):
    student, teacher, labels = batch
    objective = make(
        temperature=temperature, alpha=alpha, hard_weight=hard_weight, hard_target=hard_target
    )
    total = objective(student, teacher, labels).total
    expected = longhand(student, teacher, labels, temperature, alpha, hard_weight, hard_target)
    assert float(total) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("hard_target", ["labels", "teacher"])
def test_its_gradient_is_the_slope_of_the_formula(batch, hard_target):
    student, teacher, labels = batch
    settings = {"temperature": 3.0, "alpha": 0.7, "hard_weight": 0.4, "hard_target": hard_target}
    make(**settings)(student, teacher, labels).total.backward()
    step = 1e-6
    for index in [(0, 0, 0), (0, 2, 4), (1, 1, 3), (0, 1, 2), (1, 2, 0)]:
        up, down = student.detach().clone(), student.detach().clone()
        up[index] += step
        down[index] -= step
        slope = (
            longhand(up, teacher, labels, **settings) - longhand(down, teacher, labels, **settings)
        ) / (2 * step)
        assert float(student.grad[index]) == pytest.approx(slope, abs=1e-8)


def test_the_soft_gradient_is_that_of_the_cross_entropy(batch):
    student, teacher, labels = batch
    temperature = 2.0
    make(temperature=temperature, hard_weight=0)(student, teacher, labels).total.backward()
    p, q = ((x.detach() / temperature).softmax(-1) for x in (teacher, student))
    expected = temperature * (q - p) * (labels != -100)[..., None]  # T² · 1/T · (q_T − p_T)
    torch.testing.assert_close(student.grad, expected, rtol=1e-12, atol=1e-12)


def test_a_perfect_student_has_no_divergence(batch):
    _, teacher, labels = batch
    terms = make(temperature=3.0, hard_target="teacher")(teacher, teacher, labels)
    assert float(terms.parts["hard"]) == pytest.approx(0, abs=1e-14)
    assert float(terms.parts["soft"]) == pytest.approx(0, abs=1e-13)


def test_masked_positions_change_nothing(batch):
    student, teacher, labels = batch
    objective = make(temperature=2.0)
    before = objective(student, teacher, labels).total
    with torch.no_grad():
        student[labels == -100] += 100
        teacher[labels == -100] -= 50
    assert float(objective(student, teacher, labels).total) == pytest.approx(float(before), 1e-14)


def test_padded_vocabularies_share_the_tokenizers(batch):
    """Embeddings padded to other numbers of rows; random logits in the padding."""
    student, teacher, labels = batch
    wide_student = torch.cat([student.detach(), torch.randn(B, T, 3)], -1).requires_grad_()
    wide_teacher = torch.cat([teacher, torch.randn(B, T, 7)], -1)
    settings = {"temperature": 2.0, "alpha": 0.5, "hard_weight": 1.0, "hard_target": "labels"}
    total = make(**settings)(wide_student, wide_teacher, labels).total
    assert float(total) == pytest.approx(longhand(student, teacher, labels, **settings), abs=1e-10)
    total.backward()
    assert not wide_student.grad[..., V:].any()


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_label_smoothing_is_torchs_own(batch, smoothing):
    student, teacher, labels = batch
    expected = torch.nn.functional.cross_entropy(
        student.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    terms = make(label_smoothing=smoothing, hard_weight=0.5, temperature=2.0)(*batch, details=True)
    torch.testing.assert_close(terms.parts["hard"], expected)
    soft = longhand(student, teacher, labels, 2.0, 1.0, 0.0, "labels")
    assert float(terms.total) == pytest.approx(0.5 * float(expected) + soft)
    unsmoothed = longhand(student, teacher, labels, 1.0, 0.0, 1.0, "labels") / 4
    assert float(terms.details["nll"]) == pytest.approx(unsmoothed)  # what is measured stays


def of_two_teachers(batch, divergence=forward_kl, **settings):
    """The soft term at T = 2 of a teacher and another that weighs three times as much, and both."""
    student, teacher, labels = batch
    other = torch.randn(B, T, V, dtype=torch.float64)
    objective = Objective(divergence, 2.0, 1.0, 0.0, "labels", **settings)
    objective.teacher_weights = (1.0, 3.0)
    teachers = [Predictions(y, None, V) for y in (teacher, other)]
    found = objective.terms(Predictions(student, None, V), teachers, labels).parts["soft"]
    return found, student[labels != -100], teacher[labels != -100], other[labels != -100]


def test_two_teachers_are_the_weighted_mean_of_their_softened_probabilities(batch):
    found, z, one, other = of_two_teachers(batch)
    p = ((one / 2).softmax(-1) + 3 * (other / 2).softmax(-1)) / 4
    expected = 4 * (p * (p.log() - (z / 2).log_softmax(-1))).sum()
    torch.testing.assert_close(found, expected.detach())


def test_where_logits_are_compared_two_teachers_are_the_weighted_mean_of_theirs(batch):
    found, z, one, other = of_two_teachers(batch, logit_mse, compares="logits")
    expected = (z - (one + 3 * other) / 4).square().sum() / V
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("hard_target", ["labels", "teacher"])
def test_where_teachers_are_unknown_there_is_the_text_alone(batch, hard_target):
    student, teacher, labels = batch
    known = torch.tensor([[True, True, False], [True, False, True]])
    terms = make(temperature=2.0, alpha=0.5, hard_target=hard_target)(
        student, teacher, labels, teacher_mask=known, details=True
    )
    both = labels.masked_fill(~known, -100)  # two of the four that count
    soft = longhand(student, teacher, both, 2.0, 0.5, 0.0, "labels")
    hard = labels if hard_target == "labels" else both
    hard = longhand(student, teacher, hard, 1.0, 0.0, 1.0, hard_target)
    assert float(terms.total) == pytest.approx(hard + soft)
    assert float(terms.details["known"]) == 0.5
    at_one = longhand(student, teacher, both, 1.0, 1.0, 0.0, "labels") / 4
    assert float(terms.details["kl"]) == pytest.approx(at_one)


def test_of_words_that_are_its_own_the_student_learns_from_the_teacher_alone(batch):
    student, teacher, labels = batch
    terms = make(temperature=2.0)(student, teacher, labels, use_labels=False, details=True)
    assert list(terms.parts) == ["soft"]
    assert set(terms.details) == {"kl", "soft_gradient_norm"}
    expected = longhand(student, teacher, labels, 2.0, 1.0, 0.0, "labels")
    assert float(terms.total) == pytest.approx(expected)


def test_without_a_teacher_only_what_needs_none_is_told(batch):
    student, _, labels = batch
    terms = make(hard_target="teacher", hard_weight=0.5)(student, None, labels, details=True)
    assert terms.parts == {}
    assert set(terms.details) == {"nll"}
    assert torch.equal(terms.total, torch.zeros((), dtype=torch.float64))


def test_what_is_told_of_a_single_token_is_its_own(batch):
    student, teacher, labels = batch
    kept = torch.tensor([3])
    terms = make()(student, teacher, labels, positions=kept, details=True)
    assert terms.details["nll"] == terms.parts["hard"]
    assert terms.details["kl"] == terms.parts["soft"]


def test_terms_inside_the_network_are_known_by_name_and_those_without_weight_left_out():
    hidden, relations = HiddenStates(1.0, "last", "mse"), Relations(2.0, "last", None, ["qq"])
    settings = {"temperature": 1.0, "alpha": 1.0, "hard_weight": 1.0, "hard_target": "labels"}
    objective = Objective(forward_kl, **settings, hidden=hidden, relations=relations)
    assert objective.intermediate == {"hidden": hidden, "relations": relations}
    unweighed = HiddenStates(0, "last", "mse")
    objective = Objective(forward_kl, **settings, hidden=unweighed, relations=relations)
    assert objective.intermediate == {"relations": relations}


def test_which_labels_count_can_be_given(batch):
    kept = torch.tensor([2, 3])
    terms = make(temperature=2.0)(*batch, positions=kept)
    assert terms.tokens == 2
    student, teacher, labels = batch
    alone = torch.full_like(labels, -100)
    alone[0, 2], alone[1, 0] = labels[0, 2], labels[1, 0]
    expected = longhand(student, teacher, alone, 2.0, 1.0, 1.0, "labels")
    assert float(terms.total) == pytest.approx(expected)


def test_complement_is_the_convex_mix(batch):
    mixed = make(alpha=0.25, hard_weight="complement")(*batch)
    explicit = make(alpha=0.25, hard_weight=0.75)(*batch)
    assert mixed.total == explicit.total


def test_without_alpha_it_is_ordinary_training_and_needs_no_teacher(batch):
    student, _, labels = batch
    objective = make(alpha=0, temperature=4.0)
    assert not objective.needs_teacher
    expected = torch.nn.functional.cross_entropy(
        student.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(objective(student, None, labels).total, expected)


@pytest.mark.parametrize(
    ("settings", "compares", "needs"),
    [
        ({"alpha": 0}, False, False),
        ({"alpha": 0, "hard_target": "teacher"}, True, True),
        ({"hard_weight": 0}, True, True),
        ({"hard_weight": 0, "hard_target": "teacher"}, True, True),
        ({"alpha": {"start": 1, "end": 0}}, True, True),
        ({"alpha": 0, "hidden": HiddenStates(1.0, "last", "mse")}, False, True),
        ({"alpha": 0, "hidden": HiddenStates(0.0, "last", "mse")}, False, False),
        ({"alpha": 1, "hidden": HiddenStates(0.0, "last", "mse")}, True, True),
    ],
)
def test_a_teacher_is_needed_where_a_term_that_ever_weighs_looks_at_it(settings, compares, needs):
    defaults = {"temperature": 1.0, "alpha": 1.0, "hard_weight": 1.0, "hard_target": "labels"}
    objective = Objective(forward_kl, **{**defaults, **settings})
    assert objective.compares_predictions is compares
    assert objective.needs_teacher is needs


@given(st.floats(0.3, 8), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_divergence_is_torchs_own_and_never_negative(temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    z, y = torch.randn(2, 4, V, generator=generator, dtype=torch.float64) * 3
    ours = make(temperature=temperature, hard_weight=0)(z[None], y[None], torch.zeros(1, 4).long())
    Categorical = torch.distributions.Categorical
    p, q = Categorical(logits=y / temperature), Categorical(logits=z / temperature)
    theirs = torch.distributions.kl_divergence(p, q).sum() * temperature**2
    assert float(ours.parts["soft"]) == pytest.approx(float(theirs), rel=1e-9, abs=1e-12)
    assert ours.parts["soft"] > -1e-12


def test_what_is_logged_beside_the_terms(batch):
    student, teacher, labels = batch
    found = make(temperature=2.0, alpha=0.5)(student, teacher, labels)
    told = make(temperature=2.0, alpha=0.5)(student, teacher, labels, details=True).details
    tokens = int(found.tokens)
    assert tokens == 4
    assert float(told["nll"]) == pytest.approx(float(found.parts["hard"]) / tokens)
    at_one = longhand(student, teacher, labels, 1.0, 1.0, 0.0, "labels") / tokens
    assert float(told["kl"]) == pytest.approx(at_one)
    student.grad = None
    (0.5 * make(temperature=2.0, hard_weight=0)(student, teacher, labels).total).backward()
    assert float(told["soft_gradient_norm"]) == pytest.approx(float(student.grad.norm()) / tokens)
    assert set(told) == {"nll", "kl", "hard_gradient_norm", "soft_gradient_norm"}
    student.grad = None
    make(alpha=0)(student, teacher, labels).total.backward()
    assert float(told["hard_gradient_norm"]) == pytest.approx(float(student.grad.norm()) / tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "loss.temperature=0 must be a number above 0"),
        ({"temperature": "warm"}, "loss.temperature=warm must be a number"),
        ({"alpha": -1}, "loss.alpha=-1 must be a number from 0"),
        ({"alpha": float("nan")}, "loss.alpha=nan"),
        ({"alpha": 2, "hard_weight": "complement"}, "at most 1"),
        ({"hard_weight": "half"}, "loss.hard_weight=half"),
        ({"alpha": 0, "hard_weight": 0}, "nothing to learn from"),
        ({"hard_target": "label"}, "Did you mean labels"),
        ({"beta": 0.5}, "loss.beta is not a setting of this loss"),
        ({"hard_weight": -1}, "loss.hard_weight=-1 must be a number from 0, or complement"),
        ({"hard_weight": float("inf")}, "loss.hard_weight=inf must"),
        ({"label_smoothing": 1}, "loss.label_smoothing=1 must be a number from 0 to below 1"),
        ({"label_smoothing": 1.5}, "loss.label_smoothing=1.5 must be a number from 0 to below 1"),
        ({"label_smoothing": 0.1, "hard_target": "teacher"}, "loss.label_smoothing is of labels"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make(**settings)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"temperature.*alpha.*hard_target"):
        make(temperature=-1, alpha=-1, hard_target="x")


@given(
    st.integers(0, 9999),
    st.integers(1, 5),
    st.sampled_from(["labels", "teacher"]),
    st.sampled_from([(1.0, 1.0, 1.0), (2.0, 0.5, "complement"), (4.0, 1.0, 0.0)]),
)
@settings(max_examples=40, deadline=None)
def test_padding_changes_neither_loss_nor_gradient(seed, more, hard_target, balance):
    temperature, alpha, hard_weight = balance
    dice = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, B, T + more, V, dtype=torch.float64, generator=dice)
    labels = torch.randint(V, (B, T + more), generator=dice)
    labels[:, T:] = -100
    objective = make(
        temperature=temperature, alpha=alpha, hard_weight=hard_weight, hard_target=hard_target
    )
    student.requires_grad_()
    padded = objective(student, teacher, labels)
    (gradient,) = torch.autograd.grad(padded.total, student)
    cut = student[:, :T].detach().requires_grad_()
    bare = objective(cut, teacher[:, :T], labels[:, :T])
    (expected,) = torch.autograd.grad(bare.total, cut)
    assert int(padded.tokens) == int(bare.tokens) == B * T
    torch.testing.assert_close(padded.total, bare.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[:, :T], expected, rtol=1e-12, atol=1e-12)
    assert not gradient[:, T:].any()
