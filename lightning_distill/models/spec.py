"""A teacher or a student before it is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.models import pretrained
from lightning_distill.models.lora import LoRASettings


@dataclass(frozen=True)
class PretrainedSource:
    """Where a pretrained model and its tokenizer come from.

    name: a local folder or a name on the hub. is_api: the model is behind a server, and only its
    tokenizer is loaded.
    """

    name: str | None
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    is_api: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """What one role of a run asks for: `teacher` or `student`.

    make: builds or loads the model, called with `data=`, the task. max_steps: optimizer steps of
    its training; 0 leaves it as it is. source: None for a model that is built from a size.
    settings: of the role's config node, for pruning and for artifact keys.
    """

    role: str
    make: Callable[..., Any]
    max_steps: int
    source: PretrainedSource | None = None
    lora: LoRASettings | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return (self.source and self.source.name) or "The model"

    def build(self, data: Any) -> PreTrainedModel:
        """A new model, or a loaded one. Raises ConfigError where it does not fit the data."""
        model: PreTrainedModel = self.make(data=data)
        if self.source:
            data.adapt_model(model, self.source.name, bool(self.max_steps))
        data.check_model(model, self.name)
        return model

    def outline(self, data: Any) -> PreTrainedModel:
        """The model on the meta device: its architecture, without weights."""
        with torch.device("meta"):
            if self.source is None:
                return self.make(data=data)
            source = self.source
            model = pretrained.outline(
                *(str(source.name), source.revision, source.trust_remote_code, data),
                source.attn_implementation,
            )
            data.adapt_model(model, source.name, bool(self.max_steps))
            return model
