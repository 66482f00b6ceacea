"""What a cache keeps of a distribution, against the distribution itself in float64."""

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from lightning_distill.losses.distributions import Dense, Sparse, StudentLogits
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.divergences.jensen_shannon import jensen_shannon
from lightning_distill.losses.objective import Objective
from lightning_distill.models.predictions import Head, Predictions
from lightning_distill.transfer.cache.hidden_codec import HiddenStateCodec
from lightning_distill.transfer.cache.sparse_codec import (
    LOG_P_RANGE,
    SparseCodec,
    dequantize,
    from_bytes,
    quantize,
    systematic_sample,
    to_bytes,
    topk_and_samples,
)

# The package holds a function of the same name as the module.
fused = sys.modules["lightning_distill.losses.chunked"]
V = 23
EVENLY = 20_000  # the uniform number at so many even places: an integral over it


def layout(kind, k=3, draws=4, temperatures=(1.0,), bits=16, vocab_size=V):
    k, draws = (k if kind != "sampled" else 0), (draws if kind != "topk" else 0)
    return SparseCodec(kind, k, draws, temperatures, bits, vocab_size)


@pytest.fixture
def log_p():
    return (2 * torch.randn(V)).log_softmax(-1)


def everywhere(kept: SparseCodec, log_p):
    """What is stored of one position for every uniform number."""
    uniform = (torch.arange(EVENLY) + 0.5) / EVENLY
    return kept.decode(kept.encode_log_p(log_p.expand(EVENLY, -1), uniform))


def as_stored(log_p, bits=16):
    """The distribution with its log-probabilities rounded, which is what is drawn from."""
    return dequantize(quantize(log_p, bits), bits).double()


def gradient(target, q, temperature):
    """Of the mean forward KL with respect to the student's logits."""
    q = q.clone().requires_grad_()
    count = len(target.ids) if isinstance(target, Sparse) else 1
    student = StudentLogits(q.expand(count, -1))
    target.compare(forward_kl, student, temperature).mean().backward()
    return q.grad


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0, 4.0)])
@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_the_gradient_of_draws_expects_the_true_one(log_p, kind, temperatures, bits):
    stored = everywhere(layout(kind, temperatures=temperatures, bits=bits), log_p)
    q = torch.randn(V)
    for T in temperatures:
        true = Dense([as_stored(log_p, bits)[None]], (1.0,))
        found, expected = gradient(stored, q, T), gradient(true, q.double(), T)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def test_the_gradient_of_renormalised_largest_does_not(log_p):
    stored = everywhere(layout("topk"), log_p)
    renormalised = Sparse(stored.ids, stored.log_p, {}, torch.ones_like(stored.log_p))
    q = torch.randn(V)
    true = gradient(Dense([log_p.double()[None]], (1.0,)), q.double(), 1.0)
    assert (gradient(renormalised, q, 1.0) - true).abs().max() > 0.02


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0])
def test_some_log_probabilities_have_the_gradient_of_all(log_p, temperature):
    ids, slopes = torch.tensor([[3, 3, 7], [0, 5, 1]]), torch.randn(2, 3, dtype=torch.double)
    z = torch.randn(2, V, dtype=torch.double, requires_grad=True)
    (StudentLogits(z).log_probs_of(ids, temperature) * slopes).sum().backward()
    found, z.grad = z.grad, None
    ((z / temperature).log_softmax(-1).gather(-1, ids) * slopes).sum().backward()
    torch.testing.assert_close(found, z.grad)


def test_draws_between_the_named_temperatures_sum_to_one(log_p):
    stored = everywhere(layout("hybrid", temperatures=(1.0, 2.0)), log_p)
    at = 1.5
    weights = stored.inverse * (stored.log_p / at).exp()
    p = weights / weights.sum(-1, keepdim=True)
    expected = (p * (stored.log_p / at - weights.sum(-1, keepdim=True).log())).sum(-1)
    found = stored.compare(forward_kl, StudentLogits(torch.zeros(EVENLY, V)), at)
    torch.testing.assert_close(found, expected + torch.log(torch.tensor(V)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hybrid"])
def test_a_perfect_student_has_no_divergence(log_p, kind):
    kept = layout(kind, temperatures=(1.0, 2.0))
    stored = everywhere(kept, log_p)
    for T in (1.0, 2.0):
        q = StudentLogits(as_stored(log_p).float().expand(EVENLY, -1))
        assert stored.compare(forward_kl, q, T).abs().max() < 1e-4


def test_the_largest_are_kept_and_all_others_are_one(log_p):
    stored = everywhere(layout("topk", k=3), log_p).at(slice(0, 1))
    log_q = torch.randn(1, V).log_softmax(-1)

    def grouped(x):
        top = log_p.topk(3).indices
        listed = x[top].exp()
        return torch.cat([listed, 1 - listed.sum()[None]]).log()[None]

    for divergence in (forward_kl, lambda q, p: jensen_shannon(q, p, beta=0.3)):
        expected = divergence(grouped(log_q[0]), grouped(log_p))
        found = stored.compare(divergence, StudentLogits(log_q), 1.0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_the_whole_vocabulary_as_the_largest_is_the_distribution_itself(temperature):
    """Also at a temperature that was not named, where the largest are taken for all there is."""
    log_p, z = (2 * torch.randn(2, 3, V)).log_softmax(-1)
    kept = layout("topk", k=V)
    stored = kept.decode(kept.encode_log_p(log_p, torch.zeros(3)))
    found = stored.compare(forward_kl, StudentLogits(z), temperature)
    expected = Dense([log_p.double()], (1.0,)).compare(
        forward_kl, StudentLogits(z.double()), temperature
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["topk", "hybrid"])
def test_positions_are_picked_from_all_that_is_kept_of_them(kind):
    kept = layout(kind, temperatures=(1.0, 2.0))
    fields = kept.encode_log_p(torch.randn(6, V).log_softmax(-1), torch.rand(6))
    flat = kept.decode(fields)
    shaped = kept.decode({name: x.unflatten(0, (2, 3)) for name, x in fields.items()})
    q = StudentLogits(torch.randn(3, V))
    for positions in (torch.tensor([4, 0, 5]), slice(2, 5)):
        found = shaped.at(positions)
        assert torch.equal(found.ids, flat.ids[positions])
        assert torch.equal(found.log_p, flat.log_p[positions])
        assert {T: z.tolist() for T, z in found.log_z.items()} == {
            T: z[positions].tolist() for T, z in flat.log_z.items()
        }
        assert (found.inverse is None) == (kind == "topk")
        if kind == "hybrid":
            assert torch.equal(found.inverse, flat.inverse[positions])
        assert found.compare(forward_kl, q, 2.0).shape == (3,)


def test_for_what_a_student_leaves_to_all_others_it_pays_as_if_it_were_a_ten_millionth():
    p = torch.tensor([[0.5, 0.3, 0.1]])
    kept = Sparse(torch.tensor([[4, 2, 7]]), p.log(), {1.0: torch.zeros(1)}, None)
    z = torch.full((1, V), -60.0)
    z[0, [4, 2, 7]] = torch.tensor([0.6, 0.3, 0.1]).log()
    expected = 0.5 * math.log(0.5 / 0.6) + 0.1 * math.log(0.1 / 1e-7)
    assert float(kept.compare(forward_kl, StudentLogits(z), 1.0)) == pytest.approx(
        expected, rel=1e-4
    )


def test_hybrid_varies_less_than_sampled_at_equal_size(log_p):
    q = torch.randn(V)
    true = gradient(Dense([log_p.double()[None]], (1.0,)), q.double(), 1.0)

    def variance(kind, k, draws):
        stored = everywhere(layout(kind, k, draws), log_p).at(slice(None, None, 50))
        each = [gradient(stored.at(slice(i, i + 1)), q, 1.0) for i in range(len(stored.ids))]
        return sum(float((g - true).square().sum()) for g in each) / len(each)

    assert variance("hybrid", 4, 4) < 0.7 * variance("sampled", 0, 8)


sizes = st.lists(st.floats(1e-6, 1.0), min_size=9, max_size=V)


@examples(deadline=None)
@given(sizes, st.integers(1, 4), st.integers(1, 4), st.floats(0, 0.999))
def test_hybrid_keeps_different_tokens_and_the_largest_first(r, k, draws, uniform):
    r = torch.tensor(r)[None]
    ids, sure, rate = topk_and_samples(r, k, draws, torch.tensor([uniform]))
    assert len(set(ids[0].tolist())) == k + draws
    assert k <= int(sure) <= k + draws
    assert set(r[0, ids[0, : int(sure)]].tolist()) == set(r[0].topk(int(sure)).values.tolist())
    if sure < k + draws:
        assert (rate * r[0, ids[0, int(sure) :]] <= 1 + 1e-5).all()


@pytest.mark.parametrize(("k", "draws"), [(1, 1), (1, 4), (3, 2), (2, 7)])
def test_a_token_is_sure_until_the_largest_left_is_due_less_than_once(k, draws):
    r = torch.rand(40, V, dtype=torch.double) ** torch.linspace(1, 12, 40)[:, None]
    r[0, 2:] = 0  # fewer tokens than are to be kept: nothing is left to draw from
    ids, sure, rate = topk_and_samples(r, k, draws, torch.rand(40))
    assert len(set(sure.tolist())) > 1
    for n in range(40):
        left = sorted(r[n].tolist(), reverse=True)
        number = k + draws
        for _ in range(k):
            left, number = left[1:], number - 1
        while number and left[0] * number >= sum(left):
            left, number = left[1:], number - 1
        assert int(sure[n]) == k + draws - number
        expected = number / sum(left) if sum(left) else math.inf
        assert float(rate[n]) == pytest.approx(expected, rel=1e-9)
        assert len(set(ids[n].tolist())) == k + draws


def test_systematic_draws_lie_at_equal_distances_along_the_sizes():
    r, uniform = torch.rand(9, V), torch.rand(9)
    number = torch.tensor([1, 2, 3, 4, 5, 6, 1, 2, 7])
    found = systematic_sample(r, number, uniform, at_most=7)
    assert found.shape == (9, 7)
    for n, count in enumerate(number.tolist()):
        alone = systematic_sample(r[n : n + 1], count, uniform[n : n + 1])[0]
        assert found[n, :count].tolist() == alone.tolist()
        total = math.fsum(r[n].tolist())
        for i, token in enumerate(alone.tolist()):
            point = (i + float(uniform[n])) / count * total
            assert sum(r[n, :token].tolist()) <= point < sum(r[n, : token + 1].tolist())


@examples(deadline=None)
@given(sizes, st.integers(1, 9), st.floats(0, 0.999))
def test_systematic_draws_take_each_token_as_often_as_it_is_due(r, draws, uniform):
    r = torch.tensor(r)[None]
    ids = systematic_sample(r, draws, torch.tensor([uniform]))
    due = draws * r[0] / r.sum()
    taken = ids[0].bincount(minlength=r.shape[1])
    assert ((taken - due).abs() < 1 + 1e-4).all()


def test_a_certain_teacher_leaves_nothing_to_draw():
    log_p = torch.full((1, V), -torch.inf).index_fill(1, torch.tensor([5]), 0.0)
    kept = layout("hybrid")
    stored = kept.decode(kept.encode_log_p(log_p, torch.tensor([0.3])))
    log_q = torch.randn(1, V).log_softmax(-1)
    torch.testing.assert_close(stored.compare(forward_kl, StudentLogits(log_q), 1.0), -log_q[:, 5])


@examples(deadline=None)
@given(st.integers(1, 2**24 - 1))
def test_ids_take_the_fewest_bytes_and_come_back(vocab_size):
    ids = torch.tensor([0, vocab_size // 2, vocab_size - 1])
    size = layout("topk", vocab_size=vocab_size).id_bytes
    assert 256 ** (size - 1) < vocab_size or size <= 1
    assert torch.equal(from_bytes(to_bytes(ids, size or 1)), ids)


@pytest.mark.parametrize(
    ("vocab_size", "size"), [(2, 1), (256, 1), (257, 2), (2**16, 2), (2**16 + 1, 3)]
)
def test_an_id_has_room_for_the_last_token(vocab_size, size):
    assert layout("topk", vocab_size=vocab_size).id_bytes == size


def test_what_a_cache_has_written_means_the_same_to_every_version():
    """The square root of a share of 64 nats: a quarter, the whole, and what lies beyond."""
    codes = quantize(torch.tensor([0.0, -4, -16, -64, -70, -torch.inf]), 8)
    assert codes.tolist() == [0, 64, 128, 255, 255, 255]
    assert dequantize(codes, 8)[3:].tolist() == [-64] * 3


def test_a_log_probability_that_rounding_has_put_above_zero_is_zero():
    assert dequantize(quantize(torch.tensor([1e-7, 1e-3]), 16), 16).tolist() == [0, 0]


@pytest.mark.parametrize(("bits", "error"), [(8, 0.13), (16, 6e-4)])
def test_log_probabilities_are_rounded_finer_where_they_are_large(bits, error):
    log_p = -torch.linspace(0, 20, 5000)
    found = dequantize(quantize(log_p, bits), bits)
    assert ((found - log_p).abs() <= error * (-log_p / 4).sqrt() + 1e-3).all()
    assert dequantize(quantize(torch.tensor([0.0]), bits), bits) == 0


def said(count, teachers=1):
    """What teachers say of as many positions: logits, as there is no head."""
    return [Predictions(2 * torch.randn(count, V + 2), None, V) for _ in range(teachers)]


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_teachers_are_stored_as_the_mean_of_their_probabilities_in_blocks_of_any_size(
    monkeypatch, rows
):
    monkeypatch.setitem(fused.BLOCK, "cpu", rows * V)
    kept = SparseCodec("hybrid", 3, 4, (1.0, 2.0), 16, V, (1.0, 3.0))
    teachers, uniform = said(7, 2), torch.rand(7)
    one, other = (t.states[:, :V].softmax(-1) for t in teachers)
    mean = (one / 4 + 3 * other / 4).log()
    found = kept.encode(teachers, uniform)
    for name, expected in kept.encode_log_p(mean, uniform).items():
        torch.testing.assert_close(found[name].float(), expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "k"), [("topk", 3), ("topk", V), ("sampled", 0), ("hybrid", 3)])
def test_what_is_lost_is_the_divergence_of_what_is_kept_from_the_teacher(kind, k, bits):
    kept, teachers = layout(kind, k, temperatures=(1.0, 2.0), bits=bits), said(5)
    fields = kept.encode(teachers, torch.rand(5))
    stored = kept.decode(fields)
    found = kept.kl(teachers, fields)
    for n in range(5):
        true = teachers[0].states[n, :V].double().softmax(-1).tolist()
        ids, p = stored.ids[n].tolist(), as_stored(torch.tensor(true).log(), bits).exp().tolist()
        total = sum(p)
        if kind == "topk":
            rest = max(0.0, 1 - sum(p[i] / total for i in ids))
            q = [p[i] / total if i in ids else rest / (V - k) for i in range(V)]
        else:
            q = [0.0] * V
            for i, inverse in zip(ids, stored.inverse[n].tolist(), strict=True):
                q[i] += p[i] * inverse
        q = [x / sum(q) for x in q]
        pairs = zip(q, true, strict=True)
        expected = sum(x * (math.log(x) - math.log(y)) for x, y in pairs if x)
        assert float(found[n]) == pytest.approx(expected, rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hybrid"])
def test_the_stated_size_is_that_of_the_fields(log_p, kind):
    kept = layout(kind, temperatures=(1.0, 2.0))
    fields = kept.encode_log_p(log_p[None], torch.tensor([0.5]))
    assert sum(x.numel() * x.element_size() for x in fields.values()) == kept.bytes_per_token
    assert type(kept.bytes_per_token) is int


def test_the_objective_takes_what_is_stored_fused_and_unfused():
    torch.manual_seed(1)
    linear = torch.nn.Linear(8, V, bias=False)
    labels = torch.randint(0, V, (2, 5)).index_fill(1, torch.tensor([2]), -100)
    log_p = torch.randn(2, 5, V).log_softmax(-1)
    kept = layout("hybrid", temperatures=(1.0, 2.0))
    fields = kept.encode_log_p(log_p.flatten(0, 1), torch.rand(10))
    stored = kept.decode({k: x.unflatten(0, (2, 5)) for k, x in fields.items()})
    states = torch.randn(2, 5, 8, requires_grad=True)
    found = []
    for fused in (True, False):
        objective = Objective(forward_kl, 2.0, 0.5, 1.0, "teacher", fused=fused)
        student = Predictions(states, Head(linear, 1.0, None), V)
        terms = objective.terms(student, stored, labels, details=True)
        found.append((terms.total, *torch.autograd.grad(terms.total, [states, linear.weight])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


caches = st.tuples(
    st.sampled_from(["topk", "sampled", "hybrid"]),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([(1.0,), (1.0, 2.0), (0.5, 1.0, 4.0)]),
    st.sampled_from([8, 16]),
    st.integers(12, 300),
)
distributions = st.tuples(st.integers(0, 9999), st.floats(0, 30))


def drawn(distribution, rows, vocab_size):
    """Log-probabilities [N, V], from nearly even ones to nearly certain ones."""
    seed, scale = distribution
    dice = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, vocab_size, generator=dice)).log_softmax(-1)


@examples(deadline=None, max_examples=80)
@given(caches, distributions)
def test_what_is_decoded_is_what_was_encoded_but_for_the_stated_rounding(cache, distribution):
    kind, k, draws, temperatures, bits, vocab_size = cache
    kept = layout(kind, k, draws, temperatures, bits, vocab_size)
    log_p = drawn(distribution, 5, vocab_size)
    uniform = torch.rand(5, generator=torch.Generator().manual_seed(distribution[0]))
    fields = kept.encode_log_p(log_p, uniform)
    stored = kept.decode(fields)
    assert sum(x[0].numel() * x.element_size() for x in fields.values()) == kept.bytes_per_token
    assert stored.ids.shape == (5, kept.k + kept.num_samples)
    assert ((stored.ids >= 0) & (stored.ids < vocab_size)).all()
    # Half a step, on the scale of the square root, on which all steps are of one size.
    root = (-log_p.double().gather(-1, stored.ids) / LOG_P_RANGE).clamp(0, 1).sqrt()
    found = (-stored.log_p.double() / LOG_P_RANGE).sqrt()
    assert ((root - found).abs() <= 0.5 / (2**bits - 1) + 1e-6).all()
    rounded = as_stored(log_p, bits)
    for T, log_z in stored.log_z.items():
        torch.testing.assert_close(
            log_z.double(), (rounded / T).logsumexp(-1), rtol=1e-5, atol=1e-5
        )
    if kind != "sampled":  # the largest are there, but for those that are rounded alike
        least = rounded.topk(kept.k, -1).values
        listed = rounded.gather(-1, stored.ids[:, : kept.k]).sort(-1, descending=True).values
        torch.testing.assert_close(listed, least, rtol=0, atol=0)


@examples(deadline=None, max_examples=25)
@given(caches.filter(lambda cache: cache[0] != "topk"), distributions, st.integers(0, 9999))
def test_draws_expect_the_sum_over_the_vocabulary_of_anything(cache, distribution, seed):
    kind, k, draws, temperatures, bits, _ = cache
    kept = layout(kind, k, draws, temperatures, bits, V)
    log_p = drawn(distribution, 1, V)
    value = torch.rand(V, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    stored = everywhere(kept, log_p[0])
    rounded = as_stored(log_p[0], bits)
    for T in temperatures:
        p = [math.exp(x / T) for x in rounded.tolist()]
        true = sum(a * b for a, b in zip(p, value.tolist(), strict=True)) / sum(p)
        log_z = stored.log_z[T].double()[:, None]
        weight = (stored.log_p.double() / T - log_z).exp()
        if stored.inverse is not None:
            weight = weight * stored.inverse
        found = (weight * value[stored.ids]).sum(-1).mean()
        assert float(found) == pytest.approx(true, abs=4e-3)


@examples(deadline=None, max_examples=40)
@given(st.integers(0, 9999), st.floats(1e-3, 1e3), st.sampled_from([8, 16, 32]))
def test_hidden_states_come_back_within_half_a_step_of_their_largest(seed, scale, bits):
    dice = torch.Generator().manual_seed(seed)
    states = scale * torch.randn(6, 12, generator=dice)
    linear = torch.nn.Linear(12, V, bias=False)
    kept = HiddenStateCodec([Head(linear, 1.0, None)], bits, V)
    fields = kept.encode([Predictions(states, Head(linear, 1.0, None), V)], torch.zeros(6))
    assert sum(x[0].numel() * x.element_size() for x in fields.values()) == kept.bytes_per_token
    (found,) = kept.decode(fields)
    step = states.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1) if bits < 32 else 0.0
    # Dividing by the scale and multiplying with it each round to 24 bits.
    rounding = states.abs() * 2.0**-23 if bits < 32 else 0.0
    assert ((found.states - states).abs() <= step * 0.5 + rounding).all()


@pytest.mark.parametrize("kind", ["topk", "sampled", "hybrid"])
def test_a_position_without_numbers_is_told_and_leaves_the_others_as_they_are(kind):
    log_p = torch.randn(6, V).log_softmax(-1)
    kept, uniform = layout(kind, temperatures=(1.0, 2.0, 4.0)), torch.rand(6)
    good = kept.encode_log_p(log_p, uniform)
    assert not kept.nonfinite(good).any()
    log_p[[1, 4]] = math.nan
    fields = kept.encode_log_p(log_p, uniform)
    broken = [number in (1, 4) for number in range(6)]
    assert kept.nonfinite(fields).tolist() == broken
    shaped = {name: field.view(2, 3, *field.shape[1:]) for name, field in fields.items()}
    assert kept.nonfinite(shaped).flatten().tolist() == broken
    for name, field in fields.items():
        assert torch.equal(field[~torch.tensor(broken)], good[name][~torch.tensor(broken)]), name
