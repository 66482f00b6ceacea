"""One file for llama.cpp and what is built on it.

Written with the `gguf` package for the architectures below; for others `export.converter` names
llama.cpp's own converter. Matrices keep the student's precision, and what llama.cpp computes in
float32 (vectors) is float32; its `llama-quantize` makes smaller files of this one.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from lightning_distill.errors import ConfigError
from lightning_distill.export import gguf_tokenizer
from lightning_distill.export.finished_run import Run
from lightning_distill.models import pretrained

NEEDS = ("gguf",)

# The class of a model: its name in llama.cpp.
ARCHITECTURES = {
    "GPT2LMHeadModel": "gpt2",
    "GraniteForCausalLM": "granite",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
INTERLEAVED = ("granite", "llama")  # rotate neighbouring channels of a head, see `interleave`
RESCALED = ("default", "linear", "llama3")  # rotary positions that only change the frequencies
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def check(run: Run, settings: DictConfig) -> None:
    """Raises ConfigError where the student cannot be written, before any weights are read."""
    if settings.converter is not None:
        if not Path(settings.converter).is_file():
            raise ConfigError(
                f"export.converter={settings.converter} is no file; it must be llama.cpp's "
                "convert_hf_to_gguf.py, or null."
            )
        return
    config = pretrained.load_saved(AutoConfig, run.student)
    name = (config.architectures or ["?"])[0]
    other = "Set export.converter to llama.cpp's convert_hf_to_gguf.py."
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(
            f"export.formats=gguf: {name} is none of the models that can be written ({known}). "
            f"{other}"
        )
    tokenizer = run.load_tokenizer()
    problems = [*_problems(config), *gguf_tokenizer.problems(tokenizer)]
    if problems:
        raise ConfigError(f"export.formats=gguf: {'; '.join(problems)}. {other}")


def write(run: Run, folder: Path, settings: DictConfig) -> None:
    """`model-<precision>.gguf`"""
    model, tokenizer = run.load(), run.load_tokenizer()
    kind = TYPES.get(model.dtype, "F32")
    file = folder / f"model-{kind}.gguf"
    if settings.converter is not None:
        convert(Path(settings.converter), run.student, file, kind)
        return
    import gguf

    name = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(file, name)
    writer.add_name(str(run.cfg.name))
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[kind]))
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.num_embeddings  # of which some may be no tokens
    _describe(writer, model, rows)
    gguf_tokenizer.add(writer, tokenizer, model.config, rows)
    for tensor_name, tensor in tensors(model):
        vector = tensor.ndim == 1
        raw = gguf.GGMLQuantizationType["F32" if vector else kind]
        array = tensor.detach().contiguous().float().numpy()
        writer.add_tensor(tensor_name, gguf.quantize(array, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def convert(converter: Path, student: Path, file: Path, kind: str) -> None:
    """By llama.cpp's own script, in this Python. Raises ConfigError with its last words."""
    command = [sys.executable, str(converter), str(student)]
    options = ["--outfile", str(file), "--outtype", kind.lower()]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode or not file.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(
            f"export.converter={converter} gave no file: {lines[-1] if lines else 'no reason'}"
        )


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name in the file, and as llama.cpp reads it."""
    import gguf

    config = model.config
    name = ARCHITECTURES[type(model).__name__]
    architecture = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for own, parameter in model.named_parameters():  # a tied output is no parameter of its own
        weight: Tensor = parameter
        theirs = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ConfigError(f"export.formats=gguf: {name} has no place for the student's {own}.")
        if name == "gpt2" and weight.ndim == 2 and ".h." in own:
            weight = weight.T  # transformers' Conv1D is [in, out]
        if name in INTERLEAVED and ".q_proj." in own:
            weight = interleave(weight, config.num_attention_heads)
        if name in INTERLEAVED and ".k_proj." in own:
            weight = interleave(weight, config.num_key_value_heads)
        yield theirs, weight
    if name == "llama" and (factors := _frequency_factors(model)) is not None:
        yield "rope_freqs.weight", factors


def interleave(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head, [heads · d, ...], in the order of llama.cpp's rotary positions.

    transformers rotates channel i of a head together with i + d/2, llama.cpp's kernel for these
    architectures 2i with 2i + 1. Scores of queries and keys stay the same where both are reordered.
    """
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape)


def _frequency_factors(model: PreTrainedModel) -> Tensor | None:
    """By what the rotary frequencies are divided, [d / 2]; None where that is 1."""
    if model.config.rope_parameters.get("rope_type", "default") == "default":
        return None
    used: Any = model.get_submodule("model.rotary_emb").inv_freq
    exponents = torch.arange(len(used), dtype=torch.float64) / len(used)
    plain = model.config.rope_parameters["rope_theta"] ** -exponents
    return (plain / used.double()).float()


def _describe(writer: Any, model: PreTrainedModel, rows: int) -> None:
    config = model.config
    writer.add_vocab_size(rows)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = _head_width(config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)  # the logits are divided by it


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _problems(config: Any) -> Iterator[str]:
    """What of the student llama.cpp would compute differently, without a word."""
    if config.model_type == "gpt2":
        if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            yield f"the activation {config.activation_function} is not the one of llama.cpp's gpt2"
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            yield "its attention is not scaled as that of llama.cpp's gpt2"
        return
    if config.hidden_act != "silu":
        yield f"the activation {config.hidden_act} is not silu"
    rope = config.rope_parameters.get("rope_type", "default")
    if rope not in (RESCALED if config.model_type == "llama" else ("default",)):
        yield f"rotary positions of the type {rope} cannot be written"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        yield "rotary positions that turn a part of each head cannot be written"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        yield "layers that attend to a sliding window cannot be written"
