"""Pretrained models of several architectures as teacher and student of the command.

The router's auxiliary loss, which balances the experts of a mixture, is not part of our objective:
a mixture is trained by the same terms as any other model.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import without_its_end
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lightning_distill.data.tokenizer import train_tokenizer

STEPS = [
    *("student.max_steps=6", "checkpoint_every_n_steps=4", "teacher.max_steps=0"),
    *("loss.temperature=2", "loss.hard_weight=0"),
]


def decoder(width):
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }


# Gemma's embedding has more rows than the tokenizer has tokens; GPT-2 has dropout.
MODELS = {
    "llama": lambda width, ids: LlamaForCausalLM(LlamaConfig(**decoder(width), **ids)),
    "qwen3": lambda width, ids: Qwen3ForCausalLM(Qwen3Config(**decoder(width), **ids)),
    "gemma2": lambda width, ids: Gemma2ForCausalLM(
        Gemma2Config(
            **decoder(width),
            **ids | {"vocab_size": ids["vocab_size"] + 20},
            query_pre_attn_scalar=8,
            sliding_window=16,
            final_logit_softcapping=2.0,
        )
    ),
    "gpt2": lambda width, ids: GPT2LMHeadModel(
        GPT2Config(
            **ids, n_embd=width, n_layer=2, n_head=2, n_positions=64
        )
    ),
    "mamba": lambda width, ids: MambaForCausalLM(
        MambaConfig(**ids, hidden_size=width, num_hidden_layers=2, state_size=4)
    ),
    "qwen3_moe": lambda width, ids: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **decoder(width), **ids, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        )
    ),
}  # fmt: skip
WIDTHS = {"teacher": 32, "student": 16}
PLAIN = ("llama", "qwen3", "gpt2")  # other tests cover them


@pytest.fixture(scope="module")
def tokenizer():
    words = "a teacher student learns soft targets from temperature model small large"
    return train_tokenizer([words] * 3, 300)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Shared, so that the text is tokenized once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in PLAIN else ()) for name in MODELS],
)
def saved(request, tokenizer, tmp_path_factory):
    """A folder with a teacher and a student of one architecture."""
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end}
    folder = tmp_path_factory.mktemp(request.param)
    for role, width in WIDTHS.items():
        torch.manual_seed(width)
        model = MODELS[request.param](width, ids | {"pad_token_id": None})
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.mul_(3)  # for predictions far from uniform
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return folder


@pytest.fixture(scope="module")
def run(saved, outputs, in_process, tmp_path_factory):
    """Distills one into the other. Returns the run's folder and its output."""
    chosen = [f"paths.outputs={outputs}", *STEPS]
    for role in WIDTHS:
        chosen += [f"{role}=pretrained", f"{role}.name={saved / role}"]

    def run(*settings, folder: Path | None = None):
        folder = folder or tmp_path_factory.mktemp("run")
        output = in_process(*chosen, *settings, f"hydra.run.dir={folder}").stdout
        return folder, output

    return run


@pytest.fixture(scope="module")
def whole(run):
    with without_its_end():
        return run()


@pytest.fixture(scope="module")
def predict(outputs, tokenizer):
    """Returns a function from a saved model to the test split's labels [N] and the model's
    log-probabilities [N, V], computed by transformers alone."""
    (tokens,) = (outputs / "artifacts" / "tokens").glob("*/tokens.safetensors")
    ids = load_file(tokens)["test"].long()

    @torch.no_grad()
    def predict(folder):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        log_probs = []
        for start in range(0, len(ids) - 1, 32):  # data.sequence_length
            logits = model(ids[None, start : min(start + 32, len(ids) - 1)]).logits[0]
            log_probs.append(logits[:, : len(tokenizer)].log_softmax(-1))
        return ids[1:], torch.cat(log_probs)

    return predict


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_distillation_reduces_the_kl_divergence_from_the_teacher(saved, whole, predict):
    folders = (saved / "teacher", saved / "student", whole[0] / "student")
    p, before, after = (predict(folder)[1] for folder in folders)
    kl = [float((p.exp() * (p - q)).sum(-1).mean()) for q in (before, after)]
    assert kl[1] < kl[0]
    assert kl[1] == pytest.approx(results(whole[0])["student"]["teacher_kl"], abs=1e-5)


def test_training_with_the_fused_loss_equals_training_with_the_plain_one(whole, run):
    folder, output = whole
    assert "more than a matrix product" not in output  # the fused loss was used
    plain = results(run("loss.fused=false")[0])["student"]
    assert plain["nll"] == pytest.approx(results(folder)["student"]["nll"], abs=1e-5)


def test_the_checkpoint_holds_the_student_alone(whole):
    weights = torch.load(whole[0] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in weights)
    student = AutoModelForCausalLM.from_pretrained(whole[0] / "student")
    assert {name.removeprefix("model.") for name in weights} >= set(student.state_dict())
    assert not any(name.startswith("teachers.") for name in weights)


def test_transformers_loads_the_student_and_computes_the_reported_nll(whole, predict):
    labels, q = predict(whole[0] / "student")
    nll = float(-q.gather(1, labels[:, None]).mean())
    assert nll == pytest.approx(results(whole[0])["student"]["nll"], abs=1e-5)


def test_an_interrupted_run_ends_with_the_same_scores(whole, run):
    folder, _ = whole
    before = results(folder)
    interrupted = {"status": "running", "key": before["key"]}
    (folder / "results.json").write_text(json.dumps(interrupted))
    _, output = run(folder=folder)
    assert "resuming from step 4" in output
    assert results(folder)["student"] == before["student"]
