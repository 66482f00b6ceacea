"""An ONNX graph, whose outputs are compared with the student's.

The graph computes in float32, whatever precision the student was saved in.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError, first_line
from lightning_distill.experiment.finished_run import FinishedRun
from lightning_distill.export.example_inputs import example_batches, valid_positions
from lightning_distill.export.format import ExportSettings, Format

log = logging.getLogger(__name__)

OUTPUT = "logits"
TOLERANCE = 1e-4  # relative to the largest output
MAX_INLINE_BYTES = 1_500_000_000  # larger weights go to a second file; an ONNX file has ≤ 2 GiB


def check(run: FinishedRun, settings: ExportSettings) -> None:
    """Raises ConfigError for encoder-decoders. Other models are known to fail only in `write`."""
    if run.task.is_generative and not run.task.continues_prompt:
        raise ConfigError(
            "export.formats=onnx: an encoder-decoder needs more than one graph, which optimum "
            "exports (optimum-cli export onnx). Leave onnx out."
        )


def write(run: FinishedRun, folder: Path, settings: ExportSettings) -> None:
    """Writes model.onnx, config and tokenizer to `onnx/`.

    Raises ConfigError if torch cannot export the student, or the graph's outputs differ.
    """
    model, tokenizer = run.load_student(), run.load_tokenizer()
    make_exportable(model)
    batches = example_batches(model, run.load_data())
    subfolder = folder / "onnx"
    subfolder.mkdir()
    model.config.save_pretrained(subfolder)
    if tokenizer is not None:
        tokenizer.save_pretrained(subfolder)
    export_graph(model, batches[0], subfolder / "model.onnx")
    require_equal_outputs(model, subfolder / "model.onnx", batches)


def make_exportable(model: PreTrainedModel) -> None:
    """Replaces operations that ONNX lacks, in place; the model computes the same function."""
    model.float()
    model.set_experts_implementation("batched_mm")  # the default of mixtures has no ONNX operator


def require_equal_outputs(
    model: PreTrainedModel, file: Path, batches: list[dict[str, Tensor]]
) -> None:
    """Raises ConfigError if an output differs by more than TOLERANCE."""
    largest, difference = compare_outputs(model, file, batches)
    if not difference <= TOLERANCE * largest:
        raise ConfigError(
            f"export.formats=onnx: onnxruntime's {OUTPUT} differ from the student's by up to "
            f"{difference:.2g}, where the largest is {largest:.2g} and {TOLERANCE:g} of that is "
            "allowed. Leave onnx out."
        )
    log.info(
        "onnxruntime's %s differ by at most %.1g; the largest is %.2g", OUTPUT, difference, largest
    )


def export_graph(model: Any, batch: dict[str, Tensor], file: Path) -> None:
    """Writes the graph. Raises ConfigError if torch cannot export the model.

    batch: inputs [B, T] with variable B and T, or [B, C, H, W] with variable B.
    """
    batch_size, time = torch.export.Dim("batch"), torch.export.Dim("time")
    dynamic_shapes = tuple(
        {0: batch_size, 1: time} if x.ndim == 2 else {0: batch_size} for x in batch.values()
    )
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        with warnings.catch_warnings():
            # Inputs share an axis, of which torch keeps one name.
            warnings.filterwarnings("ignore", ".*axis name.*will not be used")
            program = torch.onnx.export(
                LogitsOnly(model, list(batch)).eval(),
                tuple(batch.values()),
                input_names=list(batch),
                output_names=[OUTPUT],
                dynamic_shapes={"inputs": dynamic_shapes},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"export.formats=onnx: torch.onnx cannot export {type(model).__name__}: "
            f"{first_line(error.__cause__ or error)}"
        ) from error
    assert program is not None
    program.save(file, external_data=num_bytes > MAX_INLINE_BYTES)


class LogitsOnly(nn.Module):
    """A model as a function of tensors to its logits, without keyword arguments."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        batch = dict(zip(self.names, inputs, strict=True))
        options = {"use_cache": False} if self.model.can_generate() else {}
        logits: Tensor = getattr(self.model(**batch, **options), OUTPUT)
        return logits


def compare_outputs(
    model: Any, file: Path, batches: list[dict[str, Tensor]]
) -> tuple[float, float]:
    """The largest absolute output of the model, and the largest difference of onnxruntime's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = largest_difference = 0.0
    for batch in batches:
        with torch.no_grad():
            outputs = LogitsOnly(model, list(batch))(*batch.values())
        arrays = {name: value.numpy() for name, value in batch.items()}
        try:
            (array,) = session.run([OUTPUT], arrays)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            shape = " × ".join(map(str, next(iter(arrays.values())).shape))
            raise ConfigError(
                f"export.formats=onnx: the graph of {type(model).__name__} rejects a batch of "
                f"shape {shape}: {first_line(error)}"
            ) from error
        valid = valid_positions(batch, outputs)
        expected = outputs[valid]
        difference = (torch.from_numpy(array)[valid] - expected).abs()
        largest = max(largest, float(expected.abs().max()))
        largest_difference = max(largest_difference, float(difference.nan_to_num(torch.inf).max()))
    return largest, largest_difference


FORMAT = Format(
    "onnx",
    check,
    write,
    requires=("onnx", "onnxruntime", "onnxscript"),
    silenced=("torch.onnx", "onnxscript", "onnx_ir"),
)
