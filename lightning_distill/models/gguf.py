"""GGUF files, as llama.cpp, Ollama and LM Studio use them, converted to Hugging Face folders.

transformers reads the file: it dequantizes the weights, and builds config, tokenizer and chat
template from the metadata. It cannot save what it has read, as the config names the GGUF file.
"""

import logging
import struct
from contextlib import nullcontext, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lightning_distill import progress
from lightning_distill.config.input_files import path_of
from lightning_distill.errors import ConfigError, one_line
from lightning_distill.models import pretrained
from lightning_distill.models.inspection import count_parameters
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import Artifact, Store, hash_of

log = logging.getLogger(__name__)

VERSION = 1  # raise it when a file is converted differently
# What transformers raises for a file that is damaged, cut short, or of an unknown architecture.
UNREADABLE = (ValueError, KeyError, IndexError, RuntimeError, OSError, struct.error)


def obtain_folder(store: Store, key: str, path: str, dtype: str) -> Artifact:
    """The artifact with the converted model.

    key: the config key of `path`, for messages. path: a file, or `package:<name>/<file>`. dtype: of
    the weights, as torch names it. Raises ConfigError where the file is incomplete, or where
    transformers does not read its architecture.
    """
    pretrained.check_dtype(f"{key}={path}", dtype)
    file = path_of(path)
    made_from = {
        "file": hash_of(file),
        "dtype": dtype,
        "edition": VERSION,
        "transformers": transformers.__version__,
    }
    return store.get("gguf", made_from, partial(_convert, file, f"{key}={path}", dtype))


def load(
    path: str,
    dtype: str,
    data: Any,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """The model in a folder of `obtain_folder`. See `pretrained.load`."""
    return pretrained.load(path, None, dtype, False, data, attn_implementation, quantization)


def _convert(file: Path, setting: str, dtype: str, folder: Path) -> dict[str, Any]:
    log.info("converting %s", shown(file))
    tokenizer, (model, info) = _read(file, setting, dtype)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{setting} lacks {len(missing)} weights of a {type(model).__name__}, such as "
            f"{missing[0]}. Is it one part of several, or an adapter?"
        )
    config = model.config
    config.architectures = [type(model).__name__]
    if hasattr(config, "quantization_config"):  # it would be taken for a quantized model
        del config.quantization_config
    for part in (tokenizer, config, model.generation_config):
        part.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return {"file": file.name, "parameters": count_parameters(model)}


def _read(file: Path, setting: str, dtype: str) -> Any:
    """Tokenizer, and model with its loading report."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    terminal = nullcontext() if progress.is_shown() else redirect_stderr(StringIO())
    try:
        with terminal:  # transformers shows a progress bar, also in logs
            # AutoTokenizer would take the class of the architecture, with rules of its own.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(**source)
            settings = {"dtype": dtype, "output_loading_info": True, **_dequantizing()}
            return tokenizer, AutoModelForCausalLM.from_pretrained(**source, **settings)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs the package gguf: pip install 'lightning_distill[gguf]'"
        ) from error
    except UNREADABLE as error:
        reason = one_line(error).rstrip(".")
        raise ConfigError(
            f"{setting} cannot be read: {reason}. Is the file complete, and of an architecture "
            "that transformers reads from GGUF?"
        ) from error


def _dequantizing() -> dict[str, Any]:
    """Without it, versions of transformers that have this class may keep weights quantized."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}
