"""vLLM needs a GPU. What is asked of it is tried on a stand-in with its interface, so this shows
that the same text comes out, and nothing of vLLM itself."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_distill.models import sizes
from lightning_distill.models.generation import Sampling, generate
from lightning_distill.transfer import vllm

BEGINNINGS = [torch.arange(5, 11), torch.arange(40, 42)]


class LLM:
    """Writes the likeliest tokens, read from the folder that it is given."""

    def __init__(self, model, max_model_len, generation_config):
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.most = max_model_len
        assert generation_config == "vllm"

    def generate(self, prompts, settings, use_tqdm):
        found = []
        for prompt, how in zip(prompts, settings, strict=True):
            ids = list(prompt["prompt_token_ids"])
            assert len(ids) + how.max_tokens <= self.most
            for _ in range(how.max_tokens):
                logits = self.model(torch.tensor([ids])).logits[0, -1]
                ids.append(int(logits[how.allowed_token_ids].argmax()))
                if ids[-1] in how.stop_token_ids:
                    break
            new = ids[len(prompt["prompt_token_ids"]) :]
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new))]))
        return found


def test_it_writes_what_transformers_writes(make_data, tmp_path, monkeypatch):
    stand_in = ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    tokenizer = make_data().tokenizer
    model = sizes.decoder(sizes.Size(16, 1, 2, 64), tokenizer)
    writer = vllm.VLLM(model, tokenizer, 14, tmp_path)
    found = writer(BEGINNINGS, 14, Sampling(0.0), 0)
    assert found == generate(model, tokenizer, BEGINNINGS, 14, Sampling(0.0), 0)


def test_it_is_not_asked_without_a_gpu(make_data):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert not vllm.is_usable(make_data(), Sampling(1.0))


def test_it_is_asked_for_nothing_but_what_decoders_write_without_beams(make_data, monkeypatch):
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert vllm.is_usable(make_data(), Sampling(1.0))
    assert not vllm.is_usable(make_data(), Sampling(0.0, num_beams=2))
    assert not vllm.is_usable(SimpleNamespace(continues_prompt=False), Sampling(1.0))
