"""A folder for `from_pretrained`, vLLM and other programs that read transformers' files."""

from pathlib import Path

import torch

from lightning_distill.experiment.finished_run import FinishedRun
from lightning_distill.export.format import ExportSettings, Format
from lightning_distill.models import pretrained


def check(run: FinishedRun, settings: ExportSettings) -> None:
    """Every student is supported."""


def write(run: FinishedRun, folder: Path, settings: ExportSettings) -> None:
    """Writes config, safetensors and tokenizer, and compares the saved weights with the student."""
    model, tokenizer = run.load_student(), run.load_tokenizer()
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    saved = pretrained.load_saved(run.task.auto_class, folder, "export.run").state_dict()
    for name, weight in model.state_dict().items():
        if not torch.equal(saved[name], weight):
            raise RuntimeError(f"the weight {name} in {folder} differs from the student's")


FORMAT = Format("huggingface", check, write)
