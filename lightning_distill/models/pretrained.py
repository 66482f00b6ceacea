"""Models that somebody else trained, from a local folder or the hub."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distill.config import untrusted
from lightning_distill.config.allowlist import ALLOW
from lightning_distill.errors import ConfigError, one_line
from lightning_distill.storage.artifacts import hash_of

# What decides, beside its weights, what a model predicts.
DESCRIBED_BY = ("config.json", "tokenizer.json")

# What is said to be missing if it cannot be loaded.
WHAT: dict[Any, str] = {AutoTokenizer: "tokenizer", AutoConfig: "config.json"}


def load(
    name: str,
    revision: str | None,
    dtype: str,
    trust_remote_code: bool,
    data: Any,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """By the data's class, from safetensors only: a pickle can run any code when it is read.

    quantization: `int8` or `int4`, which is done once the weights are there as they are.

    Of a mixture of experts, the loss that balances its router is no part of our objective: its
    experts can come to be used less evenly than they were.
    """
    attention = _attention(attn_implementation)
    if attention:  # refused before the weights are read
        with torch.device("meta"):
            outline(name, revision, trust_remote_code, data, attn_implementation)
    model: PreTrainedModel = loaded(
        data.auto_class,
        name,
        revision=revision,
        dtype=_dtype(name, dtype),
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        **attention,
    )
    if quantization:
        from lightning_distill.models.quantization import quantize

        quantize(model, quantization)
    return model.train()  # as a model from a size begins; transformers' dropout is then on


def outline(
    name: str,
    revision: str | None,
    trust_remote_code: bool,
    data: Any,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The architecture alone, from its config."""
    told: Any = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = loaded(AutoConfig, name, **told)
    attention = _attention(attn_implementation)
    if "/" in (attn_implementation or "") and not trust_remote_code:
        raise ConfigError(
            f"attn_implementation={attn_implementation}, for name={name}, is code from the hub, "
            "which is only run with trust_remote_code=true."
        )
    try:
        model: PreTrainedModel = data.auto_class.from_config(
            config, trust_remote_code=trust_remote_code, **attention
        )
    except (ValueError, ImportError) as error:
        if not attention:
            raise
        reason = one_line(error)
        raise ConfigError(
            f"attn_implementation={attn_implementation}, for name={name}: {reason}"
        ) from error
    return model


def load_tokenizer(
    name: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    told: Any = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer: PreTrainedTokenizerBase = loaded(AutoTokenizer, name, **told)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # of a model's type, made of nothing
        raise ConfigError(f"name={name}: it holds no tokenizer (tokenizer.json).")
    return tokenizer


def saved(auto: Any, folder: Path, key: str = "name") -> Any:
    """A model, tokenizer or config that this program has left in a folder, or seems to have."""
    weights = {} if auto in WHAT else {"use_safetensors": True}
    return loaded(auto, str(folder), key, trust_remote_code=False, **weights)


def fingerprint(name: str, revision: str | None) -> str:
    """Changes when the weights do: a hash of a local folder, or the hub's name and revision."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"name={name}: it holds no weights (model.safetensors).")
    files = [*weights, *(folder / f for f in DESCRIBED_BY if (folder / f).exists())]
    return hashlib.sha256(" ".join(hash_of(f) for f in files).encode()).hexdigest()[:16]


def is_quantized(model: nn.Module) -> bool:
    return any(type(p) is not nn.Parameter for p in model.parameters())


def _attention(implementation: str | None) -> dict[str, str]:
    return {} if implementation is None else {"attn_implementation": implementation}


def _dtype(name: str, dtype: str) -> str:
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(
            f"dtype={dtype}, for name={name}, must be float32, bfloat16, float16 or auto."
        )
    return dtype


def _refuse_parts_elsewhere(key: str, name: str, folder: Path) -> None:
    """Raises ConfigError where the index of weights in several files leads out of their folder."""
    for index in folder.glob("*.index.json"):
        try:
            parts = {str(part) for part in json.loads(index.read_text())["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(f"{key}={name}: {index.name} is no index of weights.") from None
        if elsewhere := sorted(part for part in parts if Path(part).name != part):
            raise ConfigError(
                f"{key}={name}: {index.name} names {elsewhere[0]}, which is not in its folder."
            )


def loaded(auto: Any, name: str, key: str = "name", **settings: Any) -> Any:
    """What transformers makes of a folder or a name on the hub, which `key` gives. Raises
    ConfigError where it cannot."""
    folder = Path(name).expanduser()
    what = WHAT.get(auto, "weights (model.safetensors)")
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ConfigError(f"{key}={name}: there is no such folder.")
    if settings["trust_remote_code"] and not untrusted.may_run_code("trust_remote_code"):
        raise ConfigError(
            f"trust_remote_code=true, for name={name}, is from a file. Give it on the command line "
            f"if you trust the model, or allow it by {ALLOW}=trust_remote_code."
        )
    _refuse_parts_elsewhere(key, name, folder)
    try:
        return auto.from_pretrained(str(folder) if folder.is_dir() else name, **settings)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        reason = one_line(error)
        raise ConfigError(f"{key}={name}: its {what} cannot be loaded: {reason}") from error
