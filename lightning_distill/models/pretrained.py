"""Models that somebody else trained, from a local folder or the hub."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distill import ConfigError
from lightning_distill.artifacts import hash_of

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
) -> PreTrainedModel:
    """By the data's class, from safetensors only: a pickle can run any code when it is read."""
    return _try(
        data.auto,
        name,
        **data.loading(),
        revision=revision,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )


def outline(name: str, revision: str | None, trust_remote_code: bool, data: Any) -> PreTrainedModel:
    """The architecture alone, from its config."""
    told = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _try(AutoConfig, name, **told, **data.loading())
    model: PreTrainedModel = data.auto.from_config(config, trust_remote_code=trust_remote_code)
    return model


def load_tokenizer(
    name: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    return _try(AutoTokenizer, name, revision=revision, trust_remote_code=trust_remote_code)


def check_reading(
    theirs: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    """Raises ConfigError where a text has other ids to the teacher than to the student."""
    if theirs.eos_token_id != own.eos_token_id:
        raise ConfigError(
            f"teacher.name ends a text with {theirs.eos_token!r}, student.name with "
            f"{own.eos_token!r}. Choose loss=universal."
        )
    ids = [[t(x, add_special_tokens=False)["input_ids"] for t in (theirs, own)] for x in texts]
    different = [text for text, (one, other) in zip(texts, ids, strict=True) if one != other]
    if different:
        raise ConfigError(
            f"teacher.name and student.name have one vocabulary, and read {len(different)} of "
            f"{len(texts)} texts differently, as {different[0][:40]!r}. The student would be "
            "trained on the teacher's reading; give both one tokenizer.json."
        )


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


def _try(auto: Any, name: str, **settings: Any) -> Any:
    folder = Path(name).expanduser()
    what = WHAT.get(auto, "weights (model.safetensors)")
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ConfigError(f"name={name}: there is no such folder.")
    try:
        return auto.from_pretrained(str(folder) if folder.is_dir() else name, **settings)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"name={name}: its {what} cannot be loaded: {reason}") from error
