"""A folder for `from_pretrained`, vLLM and whatever else reads transformers' files."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from lightning_distill.export import task
from lightning_distill.export.finished_run import Run

NEEDS: tuple[str, ...] = ()
# What vLLM's loader asks for.
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def check(run: Run, settings: DictConfig) -> None:
    """Every student that was saved can be saved again."""


def write(run: Run, folder: Path, settings: DictConfig) -> None:
    """config, safetensors and tokenizer; loaded again, its weights are the student's."""
    model, tokenizer = run.load(), run.load_tokenizer()
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    kept = task.load(run.task, folder).state_dict()
    for name, weight in model.state_dict().items():
        if not torch.equal(kept[name], weight):
            raise RuntimeError(f"{folder} is not what was saved: {name} differs")
