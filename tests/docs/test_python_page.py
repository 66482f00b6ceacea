"""The Python of docs/how-to/python.md, run from top to bottom with a few steps and small models."""

import pytest
import torch
from pages import ROOT, blocks_of
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import lightning_distill as ld

SHORT = ["student.max_steps=2", "teacher.max_steps=2", "logger=none", "trainer=cpu"]
V, T = 40, 16


def model(width):
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": T}
    config = LlamaConfig(vocab_size=V, hidden_size=width, intermediate_size=2 * width, **size)
    return LlamaForCausalLM(config)


@pytest.fixture
def names():
    """What the page takes as given."""
    student, teacher, ids = model(16), model(32), torch.randint(V, (2, T))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    return {
        "student": student,
        "teacher": teacher,
        "student_logits": student(ids).logits,
        "teacher_logits": teacher(ids).logits.detach(),
        "labels": ids,
        "datamodule": DataLoader(batches, batch_size=None),
    }


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, sweep = ld.run, ld.sweep
    monkeypatch.setattr(ld, "run", lambda overrides: run([*overrides, *SHORT]))
    monkeypatch.setattr(ld, "sweep", lambda overrides: sweep([*overrides, *SHORT]))
    for block in blocks_of(ROOT / "docs" / "how-to" / "python.md"):
        if block.language == "python":
            exec(block.code, names)
    assert names["results"].status == "finished"
    assert names["made"].to_pandas()["status"].eq("finished").all()
    assert len(names["made"].jobs) == 4
    assert names["loss"].ndim == 0
