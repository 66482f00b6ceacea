"""Loss terms inside the network against the same written out longhand, in float64."""

import copy
import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
)

from lightning_distill.errors import ConfigError
from lightning_distill.losses.hidden_states import HiddenStates
from lightning_distill.losses.intermediate import layer_map, sum_over_labels
from lightning_distill.losses.relations import Relations
from lightning_distill.losses.terms import Terms

B, T = 2, 6
WHOLE = torch.arange(T).expand(B, T)
PACKED = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 0]])
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "granite": (GraniteConfig, GraniteForCausalLM)}
SETTINGS = {
    HiddenStates: {"weight": 1.0, "layers": "uniform", "distance": "mse"},
    Relations: {"weight": 1.0, "layers": "uniform", "heads": None, "pairs": ["qq", "kk", "vv"]},
}


def decoder(kind="llama", width=16, layers=2, heads=4, kv_heads=2):
    config, model = MODELS[kind]
    settings = {"vocab_size": 32, "max_position_embeddings": 16, "initializer_range": 0.5}
    return model(
        config(
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            **settings,
        )
    ).double()


def gpt2(layers=2):
    config = GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).double().eval()


def opt():
    """Computes in float64 throughout; a Llama's norms are in 32 bits whatever its dtype."""
    config = OPTConfig(
        vocab_size=32,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        init_std=0.5,
        dropout=0.0,
    )
    return OPTForCausalLM(config).double()


def make(kind, student, teacher, **settings):
    term = kind(**{**SETTINGS[kind], **settings})
    term.attach(student, teacher)
    return term


def run(term, student, teacher, ids, labels, position_ids=WHOLE):
    with term.recording():
        student(input_ids=ids, position_ids=position_ids, use_cache=False)
        with torch.no_grad():
            teacher(input_ids=ids, position_ids=position_ids, use_cache=False)
    return term(labels, position_ids)


@pytest.fixture
def batch():
    ids = torch.randint(32, (B, T))
    labels = torch.randint(32, (B, T))
    labels[0, 1] = labels[1, 5] = -100
    return ids, labels


@torch.no_grad()
def states(model, ids, position_ids):
    """hidden_states of transformers, which pass the last through the final norm: taken out."""
    name = "ln_f" if isinstance(model, GPT2LMHeadModel) else "norm"
    norm = getattr(model.base_model, name)
    setattr(model.base_model, name, nn.Identity())
    found = model(
        input_ids=ids, position_ids=position_ids, output_hidden_states=True, use_cache=False
    ).hidden_states
    setattr(model.base_model, name, norm)
    return found


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unmasked(labels):
    return [(b, t) for b in range(B) for t in range(T) if labels[b, t] != -100]


def longhand_hidden(student, teacher, labels, pairs, distance, weights=None):
    """student, teacher: hidden states, the embedding's first. weights: projections, by pair."""
    total = 0.0
    for n, (i, j) in enumerate(pairs):
        for b, t in unmasked(labels):
            x, y = student[i][b, t].tolist(), teacher[j][b, t].tolist()
            if weights:
                x = [dot(row, x) for row in weights[n].tolist()]
            if distance == "mse":
                total += sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / len(x)
            else:
                total += 1 - dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))
    return total / len(pairs)


def longhand_relation(model, hidden, layer, pair, head, heads, b, row, columns):
    """softmax over the columns of a · b / √d, one row of one head, as a list."""
    block = model.model.layers[layer - 1]
    normed = block.input_layernorm(hidden[layer - 1][b])
    left, right = (getattr(block.self_attn, f"{letter}_proj")(normed).tolist() for letter in pair)
    d = len(left[0]) // heads
    part = slice(head * d, (head + 1) * d)
    scores = [dot(left[row][part], right[c][part]) / math.sqrt(d) for c in columns]
    exponentials = [math.exp(s) for s in scores]
    return [e / sum(exponentials) for e in exponentials]


def longhand_relations(student, teacher, ids, labels, position_ids, layers, heads, pairs):
    models = [(m, states(m, ids, position_ids)) for m in (teacher, student)]
    total = 0.0
    for b, t in unmasked(labels):
        first = max(s for s in range(t + 1) if position_ids[b, s] == 0)
        for s_layer, t_layer in layers:
            for pair in pairs:
                for head in range(heads):
                    p, q = (
                        longhand_relation(
                            model, hidden, layer, pair, head, heads, b, t, range(first, t + 1)
                        )
                        for (model, hidden), layer in zip(models, (t_layer, s_layer), strict=True)
                    )
                    kl = sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
                    total += kl / heads / len(pairs) / len(layers)
    return total


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2"])
def test_hidden_states_equal_the_formula_written_out(batch, kind, distance):
    ids, labels = batch
    if kind == "gpt2":
        student, teacher = gpt2(2), gpt2(4)
    else:
        student, teacher = decoder(kind, layers=2), decoder(kind, layers=4)
    term = make(HiddenStates, student, teacher, distance=distance)
    both = states(student, ids, WHOLE), states(teacher, ids, WHOLE)
    expected = longhand_hidden(*both, labels, [(1, 2), (2, 4)], distance)
    total = run(term, student, teacher, ids, labels)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_narrow_student_is_projected(batch, distance):
    ids, labels = batch
    student, teacher = decoder(width=16), decoder(width=24, layers=3)
    term = make(HiddenStates, student, teacher, layers={1: 3, 2: 1}, distance=distance)
    weights = [p.detach() for p in term.parameters()]
    assert [tuple(w.shape) for w in weights] == [(24, 16), (24, 16)]
    assert torch.stack(weights).std() == pytest.approx(16**-0.5, rel=0.1)
    both = states(student, ids, WHOLE), states(teacher, ids, WHOLE)
    expected = longhand_hidden(*both, labels, [(1, 3), (2, 1)], distance, weights)
    total = run(term, student, teacher, ids, labels)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-11)


def test_projections_learn_and_are_all_that_a_checkpoint_holds(batch):
    student, teacher = decoder(width=16), decoder(width=24)
    term = make(HiddenStates, student, teacher)
    assert set(term.state_dict()) == {"projections.0.weight", "projections.1.weight"}
    optimizer = torch.optim.Adam(term.parameters(), lr=0.02)
    totals = []
    for _ in range(40):
        optimizer.zero_grad()
        total = run(term, student, teacher, *batch)
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.5 * totals[0]


@pytest.mark.parametrize("position_ids", [WHOLE, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize(
    ("kind", "pairs", "heads"),
    [
        ("llama", ["qq", "kk", "vv"], None),
        ("llama", ["vv", "kv"], 8),
        ("llama", ["kk"], 1),
        ("granite", ["qq", "vk"], 2),
    ],
)
def test_relations_equal_the_formula_written_out(batch, kind, pairs, heads, position_ids):
    ids, labels = batch
    student, teacher = decoder(kind, layers=2), decoder(kind, width=32, layers=3, heads=8)
    term = make(Relations, student, teacher, layers={1: 1, 2: 3}, heads=heads, pairs=pairs)
    expected = longhand_relations(
        student, teacher, ids, labels, position_ids, [(1, 1), (2, 3)], heads or 4, pairs
    )
    total = run(term, student, teacher, ids, labels, position_ids)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-11)
    assert not list(term.parameters())


def test_attention_relations_need_as_many_queries_as_keys(batch):
    ids, labels = batch
    student, teacher = decoder(kv_heads=4), decoder(width=32, heads=8, kv_heads=8)
    total = run(make(Relations, student, teacher, pairs=["qk"]), student, teacher, ids, labels)
    layers = [(1, 1), (2, 2)]
    expected = longhand_relations(student, teacher, ids, labels, WHOLE, layers, 4, ["qk"])
    assert float(total.detach()) == pytest.approx(expected, rel=1e-11)
    with pytest.raises(ConfigError, match=r"pairs has qk.*student's q_proj has 16.*k_proj 8"):
        make(Relations, decoder(), teacher, pairs=["qk"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(HiddenStates, {}), (HiddenStates, {"distance": "cosine"}), (Relations, {})],
)
def test_a_student_equal_to_its_teacher_has_no_loss(batch, kind, settings):
    teacher = decoder()
    student = copy.deepcopy(teacher)
    total = run(make(kind, student, teacher, **settings), student, teacher, *batch)
    assert float(total.detach()) == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_tokens_that_no_unmasked_position_sees_change_nothing(batch, kind):
    """Masked tokens at the end: neither the later positions nor the labels' mask lets them in."""
    ids, labels = batch
    student, teacher = decoder(), decoder()
    term = make(kind, student, teacher)
    labels[:, 3:] = -100
    before = run(term, student, teacher, ids, labels)
    changed = torch.cat([ids[:, :3], (ids[:, 3:] + 7) % 32], 1)
    after = run(term, student, teacher, changed, labels)
    torch.testing.assert_close(after, before, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_masked_positions_are_not_counted(batch, kind):
    ids, labels = batch
    student, teacher = decoder(), decoder()
    term = make(kind, student, teacher)
    each = []
    for b, t in unmasked(labels):
        one = torch.full_like(labels, -100)
        one[b, t] = labels[b, t]
        each.append(run(term, student, teacher, ids, one))
    together = run(term, student, teacher, ids, labels)
    torch.testing.assert_close(sum(each), together, rtol=1e-12, atol=0)
    assert run(term, student, teacher, ids, torch.full_like(labels, -100)) == 0


def test_relations_do_not_cross_documents(batch):
    """A document's relations are the same alone as behind another, though the models' attention
    is not isolated here: in the first layer, queries do not depend on it."""
    ids, labels = batch
    student, teacher = decoder(), decoder()
    term = make(Relations, student, teacher, layers={1: 1})
    labels = labels.masked_fill(torch.arange(T) < 3, -100)
    packed = torch.arange(T).remainder(3).expand(B, T)
    behind = run(term, student, teacher, ids, labels, packed)
    changed = torch.cat([(ids[:, :3] + 7) % 32, ids[:, 3:]], 1)
    torch.testing.assert_close(run(term, student, teacher, changed, labels, packed), behind)
    alone = run(term, student, teacher, ids[:, 3:], labels[:, 3:], WHOLE[:, :3])
    torch.testing.assert_close(alone, behind)


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
@pytest.mark.parametrize("width", [16, 24])
def test_gradient_checkpointing_changes_no_gradient(batch, kind, width):
    student, teacher = decoder(), decoder(width=width)
    term = make(kind, student, teacher)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            student.gradient_checkpointing_enable()
        student.zero_grad()
        total = run(term, student.train(), teacher, *batch)
        assert term.gradient_norm(total) > 0
        total.backward()
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    assert "model.embed_tokens.weight" in gradients[0]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_checkpointing_that_would_lose_the_gradient_is_refused(batch):
    student, teacher = decoder(), decoder()
    student.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        run(make(Relations, student, teacher), student.train(), teacher, *batch)


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_its_gradient_is_the_slope(batch, kind):
    student, teacher = opt(), opt()
    term = make(kind, student, teacher)
    run(term, student, teacher, *batch).backward()
    weight = student.model.decoder.layers[0].self_attn.v_proj.weight
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            weight[1, 2] += step
            values.append(float(run(term, student, teacher, *batch)))
    slope = (values[0] - values[1]) / 2e-6
    assert float(weight.grad[1, 2]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_in_bfloat16_it_is_close_and_in_32_bits(batch, kind):
    student, teacher = decoder(), decoder(width=24)
    exact = float(run(make(kind, student, teacher), student, teacher, *batch).detach())
    student, teacher = student.float(), teacher.float()
    torch.manual_seed(0)
    term = make(kind, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = run(term, student, teacher, *batch)
    total.backward()
    assert total.dtype == torch.float32
    if kind is Relations:  # has no random projection
        assert float(total.detach()) == pytest.approx(exact, rel=0.1)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    assert run(term, student, teacher, *batch).dtype == torch.float32


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_states_of_16_bits_are_compared_in_32(batch, distance):
    ids, labels = batch
    student, teacher = decoder().bfloat16(), decoder().bfloat16()
    term = make(HiddenStates, student, teacher, distance=distance)
    both = states(student, ids, WHOLE), states(teacher, ids, WHOLE)
    expected = longhand_hidden(*both, labels, [(1, 1), (2, 2)], distance)
    total = run(term, student, teacher, ids, labels)
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_autocast_does_not_round_relations(batch):
    ids, labels = batch
    student, teacher = decoder().float(), decoder().float()
    term = make(Relations, student, teacher)
    plain = run(term, student, teacher, ids, labels)
    with term.recording():
        student(input_ids=ids, use_cache=False)
        teacher(input_ids=ids, use_cache=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert term(labels, WHOLE) == plain


def test_the_gradient_norm_is_that_of_the_weighted_term_and_disturbs_nothing(batch):
    ids, labels = batch
    student, teacher = decoder(), decoder()
    term = make(HiddenStates, student, teacher, weight=0.3)
    total = run(term, student, teacher, ids, labels)
    norm = term.gradient_norm(total)
    both = states(student, ids, WHOLE)[1:], states(teacher, ids, WHOLE)[1:]
    difference = torch.stack([(s - t)[labels != -100] for s, t in zip(*both, strict=True)])
    expected = 0.3 * (2 * difference / 16 / 2).norm()  # a mean over 16 channels and 2 layers
    torch.testing.assert_close(norm, expected)
    assert all(p.grad is None for p in student.parameters())
    total.backward()
    after = student.model.embed_tokens.weight.grad.clone()
    student.zero_grad()
    run(term, student, teacher, ids, labels).backward()
    torch.testing.assert_close(student.model.embed_tokens.weight.grad, after, rtol=0, atol=0)


def test_the_weighted_term_joins_the_others_and_its_gradient_norm_a_token_is_told(batch):
    student, teacher = decoder(), decoder()
    term = make(HiddenStates, student, teacher, weight=0.25)
    value = run(term, student, teacher, *batch)
    before = Terms(torch.tensor(2.0), {"hard": torch.tensor(2.0)}, torch.tensor(10), {"nll": 0.2})
    after = before.plus("hidden", term, value, details=False)
    torch.testing.assert_close(after.total, 2.0 + 0.25 * value)
    assert after.total.requires_grad
    assert after.parts == {"hard": 2.0, "hidden": value}
    assert not after.parts["hidden"].requires_grad
    assert (after.tokens, after.details) == (10, {"nll": 0.2})
    told = before.plus("hidden", term, value, details=True).details
    assert told == {"nll": 0.2, "hidden_gradient_norm": term.gradient_norm(value) / 10}


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_what_runs_outside_recording_is_not_seen(batch, kind):
    ids, labels = batch
    student, teacher = decoder(), decoder()
    term = make(kind, student, teacher)
    student(input_ids=ids)
    with pytest.raises(AssertionError, match="run the student"):
        term(labels, WHOLE)
    before = run(term, student, teacher, ids, labels)
    with term.recording():
        student(input_ids=ids, use_cache=False)
        teacher(input_ids=ids, use_cache=False)
    student(input_ids=ids[:1, :2])
    student.generate(ids, max_new_tokens=2, do_sample=False)
    assert term(labels, WHOLE) == before
    with pytest.raises(AssertionError, match="run the student"):
        term(labels, WHOLE)


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_the_models_are_left_as_they_were(kind):
    student, teacher = decoder(), decoder(width=24)
    before = list(student.state_dict())
    term = make(kind, student, teacher)
    assert not any(m in term.modules() for m in (*student.modules(), *teacher.modules()))
    assert list(student.state_dict()) == before
    copied = copy.deepcopy(student)
    assert copied.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize(
    ("layers", "counts", "expected"),
    [
        ("uniform", (2, 4), [(1, 2), (2, 4)]),
        ("uniform", (3, 3), [(1, 1), (2, 2), (3, 3)]),
        ("uniform", (4, 6), [(1, 2), (2, 3), (3, 4), (4, 6)]),
        ("uniform", (4, 1), [(1, 1), (2, 1), (3, 1), (4, 1)]),
        ("last", (4, 6), [(4, 6)]),
        ({1: 2, 2: 4}, (4, 6), [(1, 2), (2, 4)]),
        (OmegaConf.create({"1": 2, 3: "4"}), (4, 6), [(1, 2), (3, 4)]),
    ],
)
def test_layers_are_mapped(layers, counts, expected):
    assert layer_map(layers, *counts, "loss.hidden.layers") == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({5: 2}, "loss.hidden.layers={5: 2}: the student has layers 1 to 4, there is no 5."),
        ({4: 7}, "loss.hidden.layers={4: 7}: the teacher has layers 1 to 6, there is no 7."),
        ({0: 1}, "the student has layers 1 to 4, there is no 0."),
        ({1: -1}, "the teacher has layers 1 to 6, there is no -1."),
        ({1: 1.5}, "loss.hidden.layers={1: 1.5}: layers are whole numbers, 1.5 is not."),
        ({"first": 1}, "first is not"),
        ({True: 1}, "True is not"),
        ({}, "loss.hidden.layers={} must be uniform, last, or pairs"),
        ("unifrom", "loss.hidden.layers=unifrom must be uniform, last, or pairs"),
        ([1, 2], r"loss.hidden.layers=[1, 2] must be"),
        (None, "loss.hidden.layers=None must be"),
    ],
)
def test_layers_that_do_not_exist_are_named(layers, message):
    with pytest.raises(ConfigError) as told:
        layer_map(layers, 4, 6, "loss.hidden.layers")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (HiddenStates, {"weight": -1}, "loss.hidden.weight=-1 must be a number from 0"),
        (HiddenStates, {"weight": math.nan}, "loss.hidden.weight=nan must"),
        (HiddenStates, {"weight": True}, "loss.hidden.weight=True must"),
        (HiddenStates, {"distance": "l1"}, "loss.hidden.distance=l1 must be one of mse, cosine"),
        (HiddenStates, {"weight": "x", "distance": "l1"}, "weight=x .*; loss.hidden.distance"),
        (Relations, {"weight": math.inf}, "loss.relations.weight=inf must"),
        (Relations, {"heads": 0}, "loss.relations.heads=0 must be a whole number from 1, or null"),
        (Relations, {"heads": True}, "loss.relations.heads=True must"),
        (Relations, {"heads": 2.0}, "loss.relations.heads=2.0 must"),
        (Relations, {"pairs": ["qq", "qx"]}, r"loss.relations.pairs=\['qq', 'qx'\] must be a list"),
        (Relations, {"pairs": []}, r"loss.relations.pairs=\[\] must"),
        (Relations, {"pairs": "qq"}, "loss.relations.pairs=qq must be a list"),
        (Relations, {"pairs": None}, "loss.relations.pairs=None must be a list"),
    ],
)
def test_settings_out_of_range_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**{**SETTINGS[kind], **settings})


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "message"),
    [
        (
            decoder,
            gpt2,
            {},
            "layer 1 of the teacher, a GPT2LM.*no k_proj, q_proj, v_proj.*loss.hid",
        ),
        (decoder, decoder, {"heads": 3}, "heads=3 does not divide the 8.*; .* the 16 channels"),
        (decoder, decoder, {"layers": {3: 1}}, "loss.relations.layers={3: 1}: the student has"),
    ],
)
def test_models_whose_relations_cannot_be_compared_are_refused(student, teacher, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(Relations, student(), teacher(), **settings)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_a_model_without_decoder_layers_is_refused(kind, role):
    models = {"student": decoder(), "teacher": decoder()}
    models[role].config.num_hidden_layers = 5
    key = f"loss.{'hidden' if kind is HiddenStates else 'relations'}"
    message = f"^{key}: the {role}, a LlamaFor.* no list of equal layers .* Set {key}.weight=0"
    with pytest.raises(ConfigError, match=message):
        make(kind, models["student"], models["teacher"])


def test_layers_of_hidden_states_that_do_not_exist_are_named():
    with pytest.raises(ConfigError, match=r"^loss.hidden.layers={3: 1}: the student has"):
        make(HiddenStates, decoder(), decoder(), layers={3: 1})


def test_hydra_builds_both():
    for kind, settings in SETTINGS.items():
        target = {"_target_": f"{kind.__module__}.{kind.__name__}"}
        term = instantiate(OmegaConf.create({**target, **settings, "layers": {1: 2}}))
        term.attach(decoder(), decoder())
        assert term.weight == 1.0


ENCODER = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(kind=BertForMaskedLM, **settings):
    return kind(
        BertConfig(**{**ENCODER, **NO_DROPOUT, **settings}, intermediate_size=24, num_labels=3)
    ).double()


def distilbert():
    config = DistilBertConfig(
        vocab_size=32, dim=16, n_layers=2, n_heads=4, hidden_dim=24, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    return DistilBertForMaskedLM(config).double()


def modernbert():
    special = dict.fromkeys(f"{x}_token_id" for x in ("pad", "bos", "eos", "cls", "sep"))
    return ModernBertForMaskedLM(
        ModernBertConfig(**ENCODER, intermediate_size=24, **special)
    ).double()


@pytest.mark.parametrize("kind", [bert, distilbert, modernbert])
def test_hidden_states_of_encoders_are_those_that_transformers_returns(batch, kind):
    ids, labels = batch
    student, teacher = kind(), kind()
    term = make(HiddenStates, student, teacher, layers={1: 1}, distance="cosine")
    with term.recording():
        said = [m(input_ids=ids, output_hidden_states=True) for m in (student, teacher)]
    s, t = (one.hidden_states[1] for one in said)
    expected = sum(1 - F.cosine_similarity(s[b, i], t[b, i], dim=0) for b, i in unmasked(labels))
    torch.testing.assert_close(term(labels), expected)


def test_where_a_text_has_one_label_its_value_is_the_mean_over_what_is_read_of_it(batch):
    ids, _ = batch
    read = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    student, teacher = (bert(BertForSequenceClassification) for _ in "12")
    term = make(HiddenStates, student, teacher, layers="last")
    with term.recording():
        said = [
            m(input_ids=ids, attention_mask=read, output_hidden_states=True).hidden_states[2]
            for m in (student, teacher)
        ]
    squares = (said[0] - said[1]).square().mean(-1)
    expected = squares[0, :4].mean()
    labels = torch.tensor([2, -100])
    torch.testing.assert_close(term(labels, None, read), expected)
    with term.recording():
        for m in (student, teacher):
            m(input_ids=ids, attention_mask=read)
    torch.testing.assert_close(term(torch.tensor([2, 0]), None, read), expected + squares[1].mean())


def test_without_a_mask_all_of_a_text_is_read():
    values, labels = torch.rand(3, 4), torch.tensor([0, -100, 1])
    torch.testing.assert_close(
        sum_over_labels(values, labels, None), values[0].mean() + values[2].mean()
    )


@pytest.mark.parametrize("kind", [HiddenStates, Relations])
def test_of_an_encoder_without_a_mask_everything_is_read(batch, kind):
    ids, labels = batch
    student, teacher = bert(), bert()
    term = make(kind, student, teacher)
    found = []
    for read in (None, torch.ones_like(ids)):
        with term.recording():
            student(input_ids=ids)
            teacher(input_ids=ids)
        found.append(term(labels, None, read))
    assert found[0] == found[1]


def test_relations_of_a_text_with_one_label_are_the_mean_over_what_is_read_of_it(batch):
    ids, _ = batch
    read = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    student, teacher = (bert(BertForSequenceClassification) for _ in "12")
    term = make(Relations, student, teacher)

    def total(labels):
        with term.recording():
            for m in (student, teacher):
                m(input_ids=ids, attention_mask=read)
        return term(labels, None, read)

    each = torch.full_like(ids, -100)
    each[0, :4] = 0
    first = total(each) / 4
    torch.testing.assert_close(total(torch.tensor([2, -100])), first)
    each[0], each[1] = -100, 0
    torch.testing.assert_close(total(torch.tensor([2, 0])), first + total(each) / 6)


def test_without_positions_a_row_is_one_document(batch):
    student, teacher = decoder(), decoder()
    term = make(Relations, student, teacher)
    expected = run(term, student, teacher, *batch)
    assert run(term, student, teacher, *batch, None) == expected


def test_the_state_of_a_layer_that_returns_more_is_the_first():
    term = HiddenStates(1.0, "last", "mse")
    layers = nn.GRU(3, 3), nn.GRU(3, 3)
    for role, layer in zip(("student", "teacher"), layers, strict=True):
        term.record(role, layer, 1)
    x = torch.randn(4, 2, 3)
    with term.recording():
        expected = [layer(x)[0] for layer in layers]
    for found, state in zip(term.take(), expected, strict=True):
        assert torch.equal(found[1], state)


@pytest.mark.parametrize("kind", [bert, distilbert])
def test_relations_of_an_encoder_are_over_all_that_is_not_padding(batch, kind):
    ids, labels = batch
    student, teacher = kind(), kind()
    read = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    labels = labels.masked_fill(read == 0, -100)
    term = make(Relations, student, teacher, layers="last", pairs=["qq"], heads=2)
    found = {}
    for role, model in (("student", student), ("teacher", teacher)):
        name = "query" if kind is bert else "q_lin"
        modules = [m for n, m in model.named_modules() if n.endswith(name)]
        modules[-1].register_forward_hook(lambda _, __, out, role=role: found.update({role: out}))
    with term.recording():
        for model in (student, teacher):
            model(input_ids=ids, attention_mask=read)
    expected = 0.0
    for b, i in unmasked(labels):
        count = int(read[b].sum())
        for h in range(2):
            p, q = (
                (x[b, i, 8 * h : 8 * h + 8] @ x[b, :count, 8 * h : 8 * h + 8].T / 8**0.5).softmax(0)
                for x in (found["teacher"], found["student"])
            )
            expected = expected + (p * (p / q).log()).sum() / 2
    torch.testing.assert_close(term(labels, None, read), expected)
