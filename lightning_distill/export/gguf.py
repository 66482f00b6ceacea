"""One GGUF file, for llama.cpp and the programs built on it.

The architectures below are written with the `gguf` package; `export.converter` names llama.cpp's
own converter for others. Matrices keep the student's precision. Vectors are float32, because
llama.cpp computes with them in float32.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from lightning_distill.errors import ConfigError
from lightning_distill.experiment.finished_run import FinishedRun
from lightning_distill.export import gguf_tokenizer
from lightning_distill.export.format import ExportSettings, Format
from lightning_distill.models import pretrained


@dataclass(frozen=True)
class Architecture:
    """name: in llama.cpp. interleaved: see `interleave`. rope_types: those that only change the
    frequencies, by factors that the file can hold."""

    name: str
    interleaved: bool = False
    rope_types: tuple[str, ...] = ("default",)


ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture("gpt2"),
    "GraniteForCausalLM": Architecture("granite", interleaved=True),
    "LlamaForCausalLM": Architecture(
        "llama", interleaved=True, rope_types=("default", "linear", "llama3")
    ),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
}
PRECISIONS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def check(run: FinishedRun, settings: ExportSettings) -> None:
    """Raises ConfigError if the student cannot be written. Reads no weights."""
    if settings.converter is not None:
        if not settings.converter.is_file():
            raise ConfigError(
                f"export.converter={settings.converter} is not a file; set it to llama.cpp's "
                "convert_hf_to_gguf.py, or null."
            )
        return
    config = pretrained.load_saved(AutoConfig, run.student_folder)
    name = (config.architectures or ["?"])[0]
    hint = "Set export.converter to llama.cpp's convert_hf_to_gguf.py."
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ConfigError(
            f"export.formats=gguf: {name} is not supported; these are: {supported}. {hint}"
        )
    problems = [
        *_problems(config, ARCHITECTURES[name]),
        *gguf_tokenizer.problems(run.load_tokenizer()),
    ]
    if problems:
        raise ConfigError(f"export.formats=gguf: {'; '.join(problems)}. {hint}")


def write(run: FinishedRun, folder: Path, settings: ExportSettings) -> None:
    """Writes `model-<precision>.gguf`."""
    model, tokenizer = run.load_student(), run.load_tokenizer()
    precision = PRECISIONS.get(model.dtype, "F32")
    file = folder / f"model-{precision}.gguf"
    if settings.converter is not None:
        convert(settings.converter, run.student_folder, file, precision)
        return
    import gguf

    writer = gguf.GGUFWriter(file, ARCHITECTURES[type(model).__name__].name)
    writer.add_name(str(run.settings["name"]))
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[precision]))
    embeddings: Any = model.get_input_embeddings()
    num_rows = embeddings.num_embeddings  # may be more than the tokenizer has tokens
    _add_hyperparameters(writer, model, num_rows)
    gguf_tokenizer.add_tokenizer(writer, tokenizer, model, num_rows)
    for name, tensor in llama_cpp_tensors(model):
        dtype = gguf.GGMLQuantizationType["F32" if tensor.ndim == 1 else precision]
        array = tensor.detach().contiguous().float().numpy()
        writer.add_tensor(name, gguf.quantize(array, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(converter: Path, student: Path, file: Path, precision: str) -> None:
    """Runs llama.cpp's script. Raises ConfigError with the last line that a failed one printed."""
    command = [sys.executable, str(converter), str(student)]
    options = ["--outfile", str(file), "--outtype", precision.lower()]
    process = subprocess.run([*command, *options], capture_output=True, text=True)
    if process.returncode or not file.exists():
        lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
        raise ConfigError(
            f"export.converter={converter} wrote no file: "
            f"{lines[-1] if lines else 'it printed no error'}"
        )


def llama_cpp_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight with its name and layout in llama.cpp.

    Raises ConfigError if llama.cpp's architecture lacks a weight of the model.
    """
    import gguf

    config = model.config
    architecture = ARCHITECTURES[type(model).__name__]
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture.name]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, parameter in model.named_parameters():  # a tied output head is not listed
        weight: Tensor = parameter
        llama_cpp_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if llama_cpp_name is None:
            raise ConfigError(
                f"export.formats=gguf: llama.cpp's {architecture.name} has no weight for the "
                f"student's {name}. Set export.converter to llama.cpp's convert_hf_to_gguf.py."
            )
        if architecture.name == "gpt2" and weight.ndim == 2 and ".h." in name:
            weight = weight.T  # transformers' Conv1D is [in, out]
        if architecture.interleaved and ".q_proj." in name:
            weight = interleave(weight, config.num_attention_heads)
        if architecture.interleaved and ".k_proj." in name:
            weight = interleave(weight, config.num_key_value_heads)
        yield llama_cpp_name, weight
    if architecture.name == "llama" and (factors := _rope_factors(model)) is not None:
        yield "rope_freqs.weight", factors


def interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of each head, [H · d, ...], for llama.cpp's rotary embedding.

    transformers rotates channel i of a head together with i + d/2, llama.cpp's kernel for these
    architectures 2i with 2i + 1. Reordering both queries and keys leaves their products unchanged.
    """
    halves = weight.unflatten(0, (num_heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape)


def _rope_factors(model: PreTrainedModel) -> Tensor | None:
    """The divisors of the rotary frequencies, [d / 2]; None if they are all 1."""
    if model.config.rope_parameters.get("rope_type", "default") == "default":
        return None
    scaled: Any = model.get_submodule("model.rotary_emb").inv_freq
    exponents = torch.arange(len(scaled), dtype=torch.float64) / len(scaled)
    unscaled = model.config.rope_parameters["rope_theta"] ** -exponents
    return (unscaled / scaled.double()).float()


def _add_hyperparameters(writer: Any, model: PreTrainedModel, num_rows: int) -> None:
    config = model.config
    writer.add_vocab_size(num_rows)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    default_head_dim = config.hidden_size // config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or default_head_dim
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)  # llama.cpp divides the logits by it


def _problems(config: Any, architecture: Architecture) -> Iterator[str]:
    """The settings for which llama.cpp would compute something else, without an error."""
    if config.model_type == "gpt2":
        if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            yield f"llama.cpp's gpt2 lacks the activation {config.activation_function}"
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            yield "llama.cpp's gpt2 scales attention differently"
        return
    if config.hidden_act != "silu":
        yield f"the activation {config.hidden_act} is not silu"
    rope_type = config.rope_parameters.get("rope_type", "default")
    if rope_type not in architecture.rope_types:
        yield f"rotary embeddings of type {rope_type} are not supported"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        yield "rotary embeddings of a part of each head are not supported"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        yield "sliding-window attention is not supported"


FORMAT = Format("gguf", check, write, requires=("gguf",), silenced=("gguf",))
