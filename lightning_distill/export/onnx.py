"""A graph for onnxruntime and what else runs ONNX, checked to give the student's outputs.

Computed in float32, whatever the student was saved in: the weights are the same numbers.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError
from lightning_distill.export import task
from lightning_distill.export.finished_run import Run

log = logging.getLogger(__name__)

NEEDS = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of the largest output
LARGEST = 1_500_000_000  # bytes of weights in the file itself; an ONNX file ends at 2 GiB


def check(run: Run, settings: DictConfig) -> None:
    """Raises ConfigError for encoder-decoders; whether torch can export a student is known when it
    has."""
    if run.task.is_generative and not run.task.continues_prompt:
        raise ConfigError(
            "export.formats=onnx: an encoder-decoder is more than one graph, which optimum makes "
            "(optimum-cli export onnx). Leave onnx out."
        )


def write(run: Run, folder: Path, settings: DictConfig) -> None:
    """`onnx/`: model.onnx, its config and tokenizer. Raises ConfigError where it is not the
    student."""
    model, tokenizer = run.load(), run.load_tokenizer()
    prepare(model)
    examples = task.examples(model, run.data)
    there = folder / "onnx"
    there.mkdir()
    model.config.save_pretrained(there)
    if tokenizer is not None:
        tokenizer.save_pretrained(there)
    trace(model, examples[0], there / "model.onnx")
    require_same(model, there / "model.onnx", examples)


def prepare(model: PreTrainedModel) -> None:
    """Changes how the model computes, in place, and not what."""
    model.float()
    # What transformers takes for a mixture of experts otherwise is no operator of ONNX.
    model.set_experts_implementation("batched_mm")


def require_same(model: PreTrainedModel, file: Path, examples: list[dict[str, Tensor]]) -> None:
    """Raises ConfigError with the numbers where the graph gives anything else than the model."""
    largest, worst = compare(model, file, examples)
    if not worst <= TOLERANCE * largest:
        raise ConfigError(
            f"export.formats=onnx: onnxruntime's {task.OUTPUT} differ from the student's by up to "
            f"{worst:.2g}, where the largest is {largest:.2g} and {TOLERANCE:g} of that is allowed."
        )
    said = "onnxruntime's %s differ by at most %.1g, the largest being %.2g"
    log.info(said, task.OUTPUT, worst, largest)


def trace(model: Any, example: dict[str, Tensor], file: Path) -> None:
    """example: each [B, T], of which both stay open in the graph, or [B, C, H, W]."""
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    sizes = tuple({0: batch, 1: time} if x.ndim == 2 else {0: batch} for x in example.values())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        program = torch.onnx.export(
            Output(model, list(example)),
            tuple(example.values()),
            input_names=list(example),
            output_names=[task.OUTPUT],
            dynamic_shapes={"inputs": sizes},
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        why = str(error.__cause__ or error).strip() or repr(error.__cause__)
        raise ConfigError(
            f"export.formats=onnx: torch.onnx cannot export {type(model).__name__}: "
            f"{why.splitlines()[0]}"
        ) from error
    assert program is not None
    program.save(file, external_data=weights > LARGEST)


class Output(nn.Module):
    """The student as a function of tensors to a tensor, which is what a graph is."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        batch = dict(zip(self.names, inputs, strict=True))
        told = {"use_cache": False} if self.model.can_generate() else {}
        return getattr(self.model(**batch, **told), task.OUTPUT)


def compare(model: Any, file: Path, examples: list[dict[str, Tensor]]) -> tuple[float, float]:
    """The largest output, and the largest difference of onnxruntime's to it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = worst = 0.0
    for batch in examples:
        with torch.no_grad():
            whole = Output(model, list(batch))(*batch.values())
        kept = task.kept(batch, whole)
        expected = whole[kept]
        arrays = {name: value.numpy() for name, value in batch.items()}
        try:
            (found,) = session.run([task.OUTPUT], arrays)
        except Exception as error:  # onnxruntime has kinds of its own, with no common parent
            size = " × ".join(map(str, next(iter(arrays.values())).shape))
            raise ConfigError(
                f"export.formats=onnx: the graph of {type(model).__name__} does not read a batch "
                f"of {size}: {str(error).strip().splitlines()[0]}"
            ) from error
        difference = (torch.from_numpy(found)[kept] - expected).abs()
        largest = max(largest, float(expected.abs().max()))
        worst = max(worst, float(difference.nan_to_num(torch.inf).max()))
    return largest, worst
