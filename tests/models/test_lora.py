"""Training of students and teachers by low-rank adapters alone."""

import json
import sys

import pytest
import torch
from conftest import without_its_end
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_distill.data.tokenizer import train_tokenizer
from lightning_distill.errors import ConfigError
from lightning_distill.models import lora
from lightning_distill.models.output_head import Predictor

pytest.importorskip("peft")

V = 50
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=V, **LLAMA)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4)
    ),
}
BATCH = {"input_ids": torch.arange(3, 13)[None], "position_ids": torch.arange(10)[None]}


def attach(model, seed=0, **settings):
    lora.attach(model, lora.LoRASettings(**{"rank": 2} | settings), "student", seed)
    return model.eval()


def perturb(model):
    """Changes the trainable weights, as training would."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) / 10)


@pytest.mark.parametrize("name", MODELS)
def test_adapters_change_nothing_at_first_and_merging_restores_an_ordinary_model(name):
    model = MODELS[name]().eval()
    names, original = set(model.state_dict()), model(BATCH["input_ids"]).logits
    assert torch.equal(attach(model)(BATCH["input_ids"]).logits, original)
    perturb(model)
    adapted = model(BATCH["input_ids"]).logits
    assert not torch.allclose(adapted, original, atol=1e-2)
    split = Predictor(model, V)(BATCH)
    assert split.head is not None
    torch.testing.assert_close(split.logits(), adapted, rtol=1e-5, atol=1e-5)
    lora.merge(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(BATCH["input_ids"]).logits, adapted, rtol=1e-4, atol=1e-5)


def test_merging_adds_the_scaled_product_of_the_low_rank_matrices():
    model = attach(MODELS["llama"](), rank=2, alpha=3, target_modules=["q_proj"])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(p.shape for p in trained.values()) == [(2, 16), (2, 16), (16, 2), (16, 2)]
    perturb(model)
    name = "model.layers.1.self_attn.q_proj"
    a, b = (trained[f"{name}.lora_{x}.default.weight"].clone() for x in "AB")
    before = model.get_submodule(name).base_layer.weight.clone()
    lora.merge(model)
    torch.testing.assert_close(model.get_submodule(name).weight, before + 3 / 2 * b @ a)


def test_adapters_depend_on_the_seed_alone_and_are_kept_in_32_bits():
    def weights(seed):
        torch.manual_seed(torch.seed() % 100)  # any earlier state of the RNG
        model = attach(MODELS["llama"]().to(torch.bfloat16), seed)
        return [p for n, p in model.named_parameters() if "lora_A" in n]

    for one, same, other in zip(weights(1), weights(1), weights(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert one.dtype == torch.float32


def test_an_unknown_target_module_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"=q_prj does not exist. Did you mean q_proj\? There is"):
        attach(MODELS["llama"](), target_modules=["v_proj", "q_prj"])
    for output in ("lm_head", "embed_tokens"):
        with pytest.raises(ConfigError, match=rf"student.lora.target_modules={output} does not"):
            attach(MODELS["llama"](), target_modules=[output])
    with pytest.raises(ConfigError, match="There is: dt_proj, in_proj, x_proj"):
        attach(MODELS["mamba"](), target_modules=["out_proj"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pretrained student and a wider teacher, with one tokenizer."""
    words = "a teacher student learns soft targets from temperature model small large"
    tokenizer = train_tokenizer([words] * 3, 300)
    folder = tmp_path_factory.mktemp("saved")
    for role, width in (("teacher", 32), ("student", 16)):
        torch.manual_seed(width)
        sizes = LLAMA | {"hidden_size": width, "vocab_size": len(tokenizer)}
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return folder


@pytest.fixture(scope="module")
def run(saved, in_process, tmp_path_factory):
    """Runs the command. Returns the run's folder, its results and its output."""
    outputs = tmp_path_factory.mktemp("outputs")

    def run(*settings, folder=None):
        folder = folder or tmp_path_factory.mktemp("run")
        chosen = [f"paths.outputs={outputs}", f"hydra.run.dir={folder}", "teacher.max_steps=0"]
        for role in ("teacher", "student"):
            if f"{role}=xs" not in settings:
                chosen += [f"{role}=pretrained", f"{role}.name={saved / role}"]
        output = in_process(*chosen, "checkpoint_every_n_steps=8", *settings).stdout
        file = folder / "results.json"
        return folder, json.loads(file.read_text()) if file.exists() else {}, output

    return run


@pytest.fixture(scope="module")
def adapted(run):
    with without_its_end():
        return run("student.lora.rank=2", "loss.hidden.weight=1", "loss.relations.weight=1")


def test_training_changes_the_adapted_layers_alone_and_the_saved_student_has_no_adapters(
    adapted, saved
):
    folder, results, output = adapted
    before, after = (
        load_file(f / "model.safetensors") for f in (saved / "student", folder / "student")
    )
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert results["student"]["parameters"] == sum(p.numel() for p in before.values())
    # Of each layer: 2 × (16 + 16) four times, 2 × (16 + 32) three times; and the projections.
    assert results["student"]["trainable_parameters"] == 2 * (4 * 64 + 3 * 96)
    assert "1,088 trainable parameters" in output
    assert "adapters of rank 2" in output


def test_the_saved_student_is_evaluated_without_peft(adapted, run, monkeypatch):
    """`stage=evaluate` finds the same scores as the run did."""
    monkeypatch.setitem(sys.modules, "peft", None)
    folder, results, _ = adapted
    run("stage=evaluate", f"evaluate.run={folder}")
    assert json.loads((folder / "results.json").read_text()) == results


def test_the_checkpoint_holds_adapters_alone_and_training_resumes_from_it(adapted, run):
    folder, results, _ = adapted
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name or name.startswith("intermediate.") for name in weights)
    interrupted = {"status": "running", "key": results["key"]}
    (folder / "results.json").write_text(json.dumps(interrupted))
    same = ("student.lora.rank=2", "loss.hidden.weight=1", "loss.relations.weight=1")
    _, again, output = run(*same, folder=folder)
    assert "resuming from step 8" in output
    assert again["student"] == results["student"]


def test_training_with_the_fused_loss_equals_training_with_the_plain_one(run):
    fused, plain = (
        run("student.lora.rank=2", "student.lora.dropout=0.1", f"loss.fused={fused}")[1]["student"]
        for fused in ("true", "false")
    )
    assert fused["nll"] == pytest.approx(plain["nll"], abs=1e-5)


@pytest.mark.slow
def test_a_teacher_can_be_trained_by_adapters_too(run, saved):
    _, results, output = run("teacher.max_steps=6", "teacher.lora.rank=2")
    assert "teacher: 1,792 trainable parameters" in output
    weights = load_file(saved / "teacher" / "model.safetensors")
    assert results["teacher"]["parameters"] == sum(p.numel() for p in weights.values())


@pytest.mark.slow
def test_a_pruned_teacher_can_be_trained_by_adapters(run):
    _, results, _ = run(
        *("student=xs", "student.initialize=teacher_layers", "student.num_hidden_layers=1"),
        *("student.hidden_size=32", "student.num_attention_heads=2", "student.lora.rank=2"),
    )
    assert results["student"]["trainable_parameters"] == 2 * (4 * 64 + 3 * 64)


def test_the_head_of_a_classifier_is_trained_as_well():
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=5)
    config.update({"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2})
    model = ViTForImageClassification(config)
    attach(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "classifier.bias"} <= trained
    assert all("lora_" in name for name in trained - {"classifier.weight", "classifier.bias"})
    assert any("lora_" in name for name in trained)
