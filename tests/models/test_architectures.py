"""Checkpoints of other people's architectures, as teacher and as student of the real command.

What balances a mixture's experts, the router's auxiliary loss, is no part of our objective: a
mixture is trained here on the same terms as any other model.
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


# Gemma's rows are more than its tokenizer's tokens; GPT-2 has dropout.
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
PLAIN = ("llama", "qwen3", "gpt2")  # which the other tests have much like this


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
                    p.mul_(3)  # so that what it predicts is far from even
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return folder


@pytest.fixture(scope="module")
def run(saved, outputs, in_process, tmp_path_factory):
    """Distils one into the other. Returns the run's folder, and what it said."""
    chosen = [f"paths.outputs={outputs}", *STEPS]
    for role in WIDTHS:
        chosen += [f"{role}=pretrained", f"{role}.name={saved / role}"]

    def run(*settings, folder: Path | None = None):
        folder = folder or tmp_path_factory.mktemp("run")
        said = in_process(*chosen, *settings, f"hydra.run.dir={folder}").stdout
        return folder, said

    return run


@pytest.fixture(scope="module")
def whole(run):
    with without_its_end():
        return run()


@pytest.fixture(scope="module")
def predicted(outputs, tokenizer):
    """The test split's tokens, and what a saved model says of each, by transformers alone."""
    (tokens,) = (outputs / "artifacts" / "tokens").glob("*/tokens.safetensors")
    ids = load_file(tokens)["test"].long()

    @torch.no_grad()
    def predicted(folder):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        found = []
        for start in range(0, len(ids) - 1, 32):  # data.sequence_length
            logits = model(ids[None, start : min(start + 32, len(ids) - 1)]).logits[0]
            found.append(logits[:, : len(tokenizer)].log_softmax(-1))
        return ids[1:], torch.cat(found)

    return predicted


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_it_comes_nearer_to_its_teacher(saved, whole, predicted):
    found = [predicted(f)[1] for f in (saved / "teacher", saved / "student", whole[0] / "student")]
    p, before, after = found
    kl = [float((p.exp() * (p - q)).sum(-1).mean()) for q in (before, after)]
    assert kl[1] < kl[0]
    assert kl[1] == pytest.approx(results(whole[0])["student"]["teacher_kl"], abs=1e-5)


def test_the_fused_loss_leads_where_the_plain_one_does(whole, run):
    folder, said = whole
    assert "more than a matrix product" not in said  # its head is one that can be fused
    plain = results(run("loss.fused=false")[0])["student"]
    assert plain["nll"] == pytest.approx(results(folder)["student"]["nll"], abs=1e-5)


def test_the_checkpoint_holds_the_student_alone(whole):
    weights = torch.load(whole[0] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in weights)
    student = AutoModelForCausalLM.from_pretrained(whole[0] / "student")
    assert {name.removeprefix("model.") for name in weights} >= set(student.state_dict())
    assert not any(name.startswith("teachers.") for name in weights)


def test_other_tools_load_the_student_and_find_the_reported_nll(whole, predicted):
    labels, q = predicted(whole[0] / "student")
    nll = float(-q.gather(1, labels[:, None]).mean())
    assert nll == pytest.approx(results(whole[0])["student"]["nll"], abs=1e-5)


def test_an_interrupted_run_ends_at_the_same_numbers(whole, run):
    folder, _ = whole
    before = results(folder)
    interrupted = {"status": "running", "key": before["key"]}
    (folder / "results.json").write_text(json.dumps(interrupted))
    _, said = run(folder=folder)
    assert "resuming from step 4" in said
    assert results(folder)["student"] == before["student"]
