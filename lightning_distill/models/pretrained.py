"""Pretrained models and tokenizers, from a local folder or the hub."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distill.config import untrusted
from lightning_distill.config.allowlist import ALLOW
from lightning_distill.errors import ConfigError, first_line, one_line
from lightning_distill.models.inspection import find_layers
from lightning_distill.storage.artifacts import hash_of

log = logging.getLogger(__name__)

# The files that decide, with its weights, what a model predicts.
FINGERPRINTED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

# Settings of generation_config.json that have an effect only with do_sample.
SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h"),
    *("epsilon_cutoff", "eta_cutoff"),
)

# What error messages say could not be loaded; by default the weights.
DESCRIPTIONS: dict[Any, str] = {AutoTokenizer: "tokenizer", AutoConfig: "config.json"}


def load(
    name: str,
    revision: str | None,
    dtype: str,
    trust_remote_code: bool,
    data: Any,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """A pretrained model of the auto class of `data`, the task, in training mode.

    Weights are read from safetensors only, as a pickle can run any code. quantization: `int8` or
    `int4`, applied to the loaded weights. The auxiliary load-balancing loss of a mixture of experts
    is not part of our objective: training may use its experts less evenly.
    """
    check_dtype(f"name={name}", dtype)
    if attn_implementation:  # refused before the weights are read
        with torch.device("meta"):
            build_outline(name, revision, trust_remote_code, data, attn_implementation)
    model, info = from_pretrained(
        data.auto_class,
        name,
        revision=revision,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        **_attention(attn_implementation),
    )
    model.missing_weights = sorted(info["missing_keys"])
    if quantization:
        from lightning_distill.models.quantization import quantize

        quantize(model, quantization)
    _repair_generation_config(model, name)
    loaded: PreTrainedModel = model.train()
    return loaded


def check_complete(model: PreTrainedModel, name: str, is_trained: bool) -> None:
    """Raises ConfigError where weights were initialized at random for lack of a saved value.

    A model that is trained further may lack those outside its layers, as a new head. model: as
    `load` returns it.
    """
    missing: list[str] = getattr(model, "missing_weights", [])
    if not missing:
        return
    layers = find_layers(model)
    in_layers = [key for key in missing if layers and key.startswith(f"{layers[0]}.")]
    shown = ", ".join((in_layers or missing)[:3]) + ", …" * (len(in_layers or missing) > 3)
    if in_layers or not is_trained:
        raise ConfigError(
            f"name={name}: its files lack {len(missing)} of the weights of a "
            f"{type(model).__name__}: {shown}. They would be random. Are they saved under other "
            "names, or without the output layer?"
        )
    log.warning("%s: not in its files, so they start at random: %s", name, shown)


def _repair_generation_config(model: PreTrainedModel, name: str) -> None:
    """Removes settings that transformers loads and refuses to save, which is after training."""
    config = model.generation_config if model.can_generate() else None
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        reason = one_line(error)
        log.warning("%s: its contradictory sampling settings are reset: %s", name, reason)
        reset_sampling(config)


def reset_sampling(config: GenerationConfig) -> None:
    """To transformers' defaults, in place."""
    defaults = GenerationConfig()
    for key in ("do_sample", *SAMPLING):
        setattr(config, key, getattr(defaults, key))


def build_outline(
    name: str,
    revision: str | None,
    trust_remote_code: bool,
    data: Any,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The architecture, built from the config alone; the weights are not read."""
    config = from_pretrained(
        AutoConfig, name, revision=revision, trust_remote_code=trust_remote_code
    )
    if "/" in (attn_implementation or "") and not trust_remote_code:
        raise ConfigError(
            f"attn_implementation={attn_implementation}, for name={name}, is code from the hub, "
            "which is only run with trust_remote_code=true."
        )
    try:
        model: PreTrainedModel = data.auto_class.from_config(
            config, trust_remote_code=trust_remote_code, **_attention(attn_implementation)
        )
    except (ValueError, ImportError) as error:
        setting = f"attn_implementation={attn_implementation}, for name={name}"
        key = setting if attn_implementation else f"name={name}"
        raise ConfigError(f"{key}: {first_line(error)}") from error
    return model


def load_tokenizer(
    name: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = from_pretrained(
        AutoTokenizer, name, revision=revision, trust_remote_code=trust_remote_code
    )
    # Without tokenizer.json, transformers makes an empty tokenizer of the model's type.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ConfigError(f"name={name}: it holds no tokenizer (tokenizer.json).")
    return tokenizer


def load_saved(auto_class: Any, folder: Path, key: str = "name") -> Any:
    """A model, tokenizer or config from a folder that this program wrote.

    Code in it, copied from a model with `trust_remote_code`, runs where the user has allowed that.
    key: the config key that names the folder, for error messages.
    """
    settings = {"trust_remote_code": untrusted.may_run_code("trust_remote_code")}
    if auto_class not in DESCRIPTIONS:
        settings["use_safetensors"] = True
    return from_pretrained(auto_class, str(folder), key, **settings)


def fingerprint(name: str, revision: str | None) -> str:
    """Identifies the weights: a hash of a local folder's files, or the hub's `name@revision`."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"name={name}: it holds no weights (model.safetensors).")
    files = [*weights, *(folder / file for file in FINGERPRINTED if (folder / file).exists())]
    return hashlib.sha256(" ".join(hash_of(f) for f in files).encode()).hexdigest()[:16]


def is_quantized(model: nn.Module) -> bool:
    return any(type(p) is not nn.Parameter for p in model.parameters())


def from_pretrained(auto_class: Any, name: str, key: str = "name", **settings: Any) -> Any:
    """`auto_class.from_pretrained`. Raises ConfigError where that fails.

    name: a local folder or a name on the hub. key: the config key that gives it.
    """
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ConfigError(f"{key}={name}: there is no such folder.")
    if settings["trust_remote_code"] and not untrusted.may_run_code("trust_remote_code"):
        raise ConfigError(
            f"trust_remote_code=true, for name={name}, is from a file. Give it on the command line "
            f"if you trust the model, or allow it by {ALLOW}=trust_remote_code."
        )
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ConfigError(
            f"{key}={name} holds a PEFT adapter without its model. Merge it first: "
            "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload(), then save both "
            "model and tokenizer."
        )
    _check_weight_index(key, name, folder)
    try:
        return auto_class.from_pretrained(str(folder) if folder.is_dir() else name, **settings)
    except (
        *(OSError, ValueError, ImportError, KeyError, RuntimeError),
        SafetensorError,
    ) as error:
        what = DESCRIPTIONS.get(auto_class, "weights (model.safetensors)")
        reason = one_line(error)
        if "trust_remote_code" in reason and not settings["trust_remote_code"]:
            reason = f"it needs code of its own; see trust_remote_code=true, and {ALLOW}"
        if "ignore_mismatched_sizes" in reason:
            reason = "their shapes are not those of config.json, as the report above shows"
        raise ConfigError(f"{key}={name}: its {what} cannot be loaded: {reason}") from error


def _check_weight_index(key: str, name: str, folder: Path) -> None:
    """Raises ConfigError where an index of sharded weights names a file outside its folder."""
    for index in folder.glob("*.index.json"):
        try:
            shards = {str(shard) for shard in json.loads(index.read_text())["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(f"{key}={name}: {index.name} is no index of weights.") from None
        if outside := sorted(shard for shard in shards if Path(shard).name != shard):
            raise ConfigError(
                f"{key}={name}: {index.name} names {outside[0]}, which is not in its folder."
            )


def _attention(implementation: str | None) -> dict[str, str]:
    return {} if implementation is None else {"attn_implementation": implementation}


def check_dtype(setting: str, dtype: str) -> None:
    """Raises ConfigError, which names the model by `setting`, for what is not of floating point."""
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(
            f"dtype={dtype}, for {setting}, must be float32, bfloat16, float16 or auto."
        )
