"""Tiny models in GGUF files."""

import torch
from transformers import AutoModelForCausalLM

from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.experiment.finished_run import FinishedRun
from lightning_distill.export import gguf
from lightning_distill.export.format import ExportSettings

TEXT = "Hello there, it's 12345 small\n\n  words; naïve café 你好!  \t done"
SIZE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def export_gguf(config, tokenizer, folder, dtype=torch.float32):
    """Saves a random model as a run's student, exports it, and returns both model and file."""
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    run = FinishedRun("export.run", folder, {"name": "tiny"}, {}, CausalLM)
    gguf.check(run, ExportSettings())
    gguf.write(run, folder, ExportSettings())
    (file,) = folder.glob("*.gguf")
    return model, file
