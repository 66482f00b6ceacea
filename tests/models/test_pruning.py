import itertools
import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lightning_distill.errors import ConfigError
from lightning_distill.models.inspection import find_layers
from lightning_distill.models.pruning import PruningSettings, block_influence, prune_teacher
from lightning_distill.models.width_pruning import activation_importance

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 32, 4, 40
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-12,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
SCALED = {"embedding_multiplier": 50.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7}
WINDOWS = {"head_dim": 16, "sliding_window": 3}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2, **WINDOWS}
NARROWED = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SIZE, **SCALED, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZE)),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZE, **ALTERNATING, use_sliding_window=True, tie_word_embeddings=True),
    ),
}
SHORTENED = NARROWED | {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZE, **ALTERNATING)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64
        ),
    ),
    "mamba": (
        MambaForCausalLM,
        MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS),
    ),
}


def make(name):
    """A float64 teacher whose weights are all random, biases and gains included."""
    kind, config = SHORTENED[name]
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def pruning(count=LAYERS, width=WIDTH, heads=HEADS, layers="uniform"):
    return PruningSettings(count, width, heads, layers)


@pytest.fixture
def batch():
    ids = torch.randint(1, VOCABULARY, (3, 9))
    return {"input_ids": ids, "position_ids": torch.arange(9).expand(3, 9)}


@torch.no_grad()
def logits(model, batch):
    return model.eval()(input_ids=batch["input_ids"], use_cache=False).logits


def assert_same(actual, expected):
    """Up to float32: transformers computes norms and rotations in it."""
    torch.testing.assert_close(actual, expected, rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize("name", SHORTENED)
def test_a_student_of_the_teachers_size_is_a_copy_of_the_teacher(name, batch):
    teacher = make(name)
    assert torch.equal(logits(prune_teacher(teacher, pruning(), []), batch), logits(teacher, batch))


@pytest.mark.parametrize("name", SHORTENED)
def test_a_student_of_listed_layers_equals_the_teacher_with_the_others_bypassed(name, batch):
    teacher = make(name)
    student = prune_teacher(teacher, pruning(2, layers=[2, 3]), [])
    for layer in (1, 4):
        bypassed = find_layers(teacher)[1][layer - 1]
        bypassed.register_forward_hook(lambda _, args, output: args[0])
    assert torch.equal(logits(student, batch), logits(teacher, batch))


@pytest.mark.parametrize("size", [{"count": 2}, {"count": 3, "width": 16, "heads": 2}], ids=str)
@pytest.mark.parametrize("name", SHORTENED)
def test_the_student_reloads_and_generates_the_same_with_and_without_its_cache(
    name, size, batch, tmp_path
):
    if name not in NARROWED and "width" in size:
        pytest.skip("only its layers can be pruned")
    student = prune_teacher(make(name), pruning(**size, layers="last"), [batch])
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same(logits(again, batch), logits(student, batch))
    ids = batch["input_ids"]
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    cached, plain = (again.generate(ids, use_cache=cache, **arguments) for cache in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", NARROWED)
def test_removing_inactive_channels_heads_and_neurons_changes_nothing(name, batch):
    teacher = make(name)
    config = teacher.config
    inactive = torch.randperm(WIDTH)[: WIDTH // 2]
    with torch.no_grad():
        teacher.get_input_embeddings().weight[:, inactive] = 0
        for layer in teacher.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            group = int(torch.randint(2, ()))  # of two, which share a key and a value each
            parameters = [
                (attention.v_proj, slice(group * attention.head_dim, None)),
                (mlp.up_proj, torch.randperm(config.intermediate_size)[24:]),
                (attention.o_proj, inactive),
                (mlp.down_proj, inactive),
            ]
            if group == 0:
                parameters[0] = (attention.v_proj, slice(0, attention.head_dim))
            for linear, rows in parameters:
                linear.weight[rows] = 0
                if linear.bias is not None:
                    linear.bias[rows] = 0
    student = prune_teacher(teacher, pruning(width=WIDTH // 2, heads=2), [batch])
    assert student.config.intermediate_size == 24
    assert_same(logits(student, batch), logits(teacher, batch))


def test_importance_is_the_mean_over_time_and_the_norm_over_the_batch(batch):
    teacher = make("llama")
    states = teacher.model(batch["input_ids"]).last_hidden_state
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(3)]
    found = activation_importance(teacher, rows)["model.norm"]
    torch.testing.assert_close(found.double(), states.abs().mean(1).norm(dim=0))


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ("uniform", 1, [1]),
        ("uniform", 2, [1, 4]),
        ("uniform", 3, [1, 3, 4]),
        ("first", 3, [1, 2, 3]),
        ("last", 3, [2, 3, 4]),
        ([2, 4], 2, [2, 4]),
    ],
    ids=str,
)
def test_layers_are_chosen_by_position(layers, count, expected):
    teacher = make("llama")
    for number, layer in enumerate(teacher.model.layers, 1):
        torch.nn.init.constant_(layer.input_layernorm.weight, number)
    student = prune_teacher(teacher, pruning(count, layers=layers), [])
    assert [int(layer.input_layernorm.weight[0]) for layer in student.model.layers] == expected


def test_the_student_is_trainable_and_shares_no_memory_with_its_teacher():
    teacher = make("llama").bfloat16().requires_grad_(False)
    student = prune_teacher(teacher, pruning(2), [])
    assert student.dtype == torch.bfloat16
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    shared = {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in teacher.parameters()
    }
    assert not shared


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("llama", {"count": 5}, "student.layers: 5 layers are more than the teacher's 4"),
        ("llama", {"width": 64}, "student.hidden_size=64 is more than the teacher's 32"),
        ("llama", {"heads": 8}, "student.num_attention_heads=8 does not fit the teacher's 4"),
        ("llama", {"heads": 3}, "teacher's 4, each 2 of which share their keys"),
        ("llama", {"layers": "unifrom"}, "Did you mean uniform?"),
        ("llama", {"layers": [1, 2], "count": 3}, "keeps 2 layers, and student.num_hidden_lay"),
        ("llama", {"layers": [1, 5], "count": 2}, "the teacher has layers 1 to 4"),
        ("llama", {"layers": [0, 4], "count": 2}, "must list numbers of layers, counted from 1"),
        ("llama", {"layers": [1, "b"], "count": 2}, "must list numbers of layers, counted from 1"),
        ("llama", {"layers": [4, 1], "count": 2}, "must name each layer once, in their order"),
        (
            "gpt2",
            {"width": 16},
            "the layers of a GPT2LMHeadModel can be pruned; set student.hi",
        ),
        ("mamba", {"width": 16, "heads": 7}, "only the layers of a"),
        ("gemma2", {"heads": 2}, "set student.hidden_size=32 and student.num_attention_heads=4"),
    ],
    ids=str,
)
def test_a_part_that_the_teacher_lacks_is_refused_from_its_outline(name, arguments, message):
    kind, config = SHORTENED[name]
    with torch.device("meta"):
        teacher = kind(config)
    with pytest.raises(ConfigError) as refused:
        prune_teacher(teacher, pruning(**arguments), [])
    assert message in str(refused.value)


def test_one_error_names_all_that_does_not_fit():
    with pytest.raises(ConfigError, match=r"5 layers are more.*hidden_size=64.*heads=5"):
        prune_teacher(make("llama"), pruning(5, 64, 5), [])


def test_the_outline_of_a_student_has_the_shapes_of_the_student(batch):
    kind, config = SHORTENED["qwen3"]
    with torch.device("meta"):
        teacher = kind(config)
    outline = prune_teacher(teacher, pruning(2, 16, 2), [])
    student = prune_teacher(make("qwen3"), pruning(2, 16, 2), [batch])
    assert outline.device.type == "meta"
    assert {k: v.shape for k, v in outline.state_dict().items()} == {
        k: v.shape for k, v in student.state_dict().items()
    }


def test_an_embedding_scaled_by_its_width_is_not_narrowed():
    teacher = GemmaForCausalLM(GemmaConfig(**SIZE))
    with pytest.raises(ConfigError, match="only the layers of a"):
        prune_teacher(teacher, pruning(width=16), [])


def test_a_layer_of_another_kind_than_its_position_needs_is_refused():
    config = Qwen3MoeConfig(
        **SIZE, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, decoder_sparse_step=2
    )
    teacher = Qwen3MoeForCausalLM(config)
    prune_teacher(teacher, pruning(2, layers=[1, 4]), [])
    with pytest.raises(ConfigError, match="layer 2 cannot be the student's layer 1"):
        prune_teacher(teacher, pruning(2, layers=[2, 4]), [])


@pytest.mark.slow
def test_before_training_a_pruned_student_is_closer_to_its_teacher_than_random(
    in_process, tmp_path
):
    results = {}
    for start in ("random", "teacher_layers"):
        in_process(
            f"student.initialize={start}", "student.num_hidden_layers=1",
            "student.hidden_size=32", "student.num_attention_heads=2",
            "student.max_steps=1", "teacher.max_steps=60", "loss.alpha=0",
            "schedule=constant", "optimizer.lr=1e-5",
            f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path / start}",
        )  # fmt: skip
        results[start] = json.loads((tmp_path / start / "results.json").read_text())
    pruned = results["teacher_layers"]
    assert pruned["teacher"]["nll"] < 5  # trained, although alpha is 0
    assert pruned["cost"]["teacher_seconds"] > 0
    assert pruned["student"]["nll"] < pruned["teacher"]["nll"] + 0.5
    assert results["random"]["student"]["nll"] > pruned["teacher"]["nll"] + 0.5


@pytest.mark.slow
def test_a_narrower_student_is_distilled_with_a_hidden_state_loss(in_process, tmp_path):
    in_process(
        "student.initialize=teacher_layers", "student.layers=[2]", "student.hidden_size=16",
        "student.num_attention_heads=1", "loss.hidden.weight=1", f"paths.outputs={tmp_path}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    size = [config[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads")]
    assert size == [1, 16, 1]


@pytest.mark.slow
def test_a_part_that_the_teacher_lacks_is_refused_before_training_it(in_process, tmp_path):
    done = in_process(
        "student.initialize=teacher_layers", "student.num_hidden_layers=9",
        f"paths.outputs={tmp_path}", expect=2,
    )  # fmt: skip
    assert "student.layers: 9 layers are more than the teacher's 2" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("artifacts/teacher/*"))


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "pad_token_id": None,
}
SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
ENCODERS = {
    "bert": (BertForMaskedLM, BertConfig(**SMALL)),
    "classifier": (BertForSequenceClassification, BertConfig(**SMALL, num_labels=3)),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(
            vocab_size=VOCABULARY, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48
        ),
    ),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**SMALL, **SPECIAL)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_pruned_encoder_equals_the_teacher_with_the_other_layers_bypassed(name, batch, tmp_path):
    kind, config = ENCODERS[name]
    teacher = kind(config).double().eval()
    student = prune_teacher(teacher, pruning(2, layers=[1, 3]), []).eval()
    for layer in (2, 4):
        bypassed = find_layers(teacher)[1][layer - 1]
        bypassed.register_forward_hook(lambda _, args, output: args[0])
    found = student(input_ids=batch["input_ids"]).logits
    assert torch.equal(found, teacher(input_ids=batch["input_ids"]).logits)
    student.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_same(again(input_ids=batch["input_ids"]).logits, found)


def test_the_width_of_an_encoder_cannot_be_pruned():
    kind, config = ENCODERS["modernbert"]
    with pytest.raises(ConfigError, match="the layers of a ModernBertForMaskedLM can be pruned"):
        prune_teacher(kind(config), pruning(width=16), [])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_influence_is_how_far_a_layer_turns_its_input(name, batch):
    teacher = make(name)
    with torch.no_grad():
        states = teacher(**batch, output_hidden_states=True).hidden_states[:-1]  # without the norm
    assert len(states) == LAYERS
    turns = [
        1 - sum(torch.dot(x, y) / (x.norm() * y.norm()) for x, y in zip(a, b, strict=True)) / len(a)
        for a, b in itertools.pairwise(state.flatten(0, 1) for state in states)
    ]
    found = block_influence(teacher, [batch])
    torch.testing.assert_close(found[:-1], torch.stack(turns).double(), rtol=1e-4, atol=1e-6)


def test_layers_by_influence_are_those_that_change_their_input_most(batch):
    teacher = make("llama")
    with torch.no_grad():
        for layer in (teacher.model.layers[0], teacher.model.layers[2]):
            layer.self_attn.o_proj.weight.mul_(1e-4)
            layer.mlp.down_proj.weight.mul_(1e-4)
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                if linear.bias is not None:
                    linear.bias.mul_(1e-4)
    student = prune_teacher(teacher, pruning(2, layers="influence"), [batch])
    kept = [teacher.model.layers[1], teacher.model.layers[3]]
    for layer, source in zip(student.model.layers, kept, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, source.mlp.up_proj.weight)
    assert teacher.training is False


def test_what_is_not_set_is_the_teachers():
    teacher = make("llama")
    student = prune_teacher(teacher, PruningSettings(2), [])
    expected = teacher.config.to_dict() | {"num_hidden_layers": 2}
    assert student.config.to_dict() == expected
