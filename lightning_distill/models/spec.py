"""A teacher or a student before it is built."""

import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.embedding import add_rows
from lightning_distill.models.lora import LoRASettings
from lightning_distill.models.pruning import PruningSettings
from lightning_distill.storage.artifacts import key_of


@dataclass(frozen=True)
class PretrainedSource:
    """Where a pretrained model and its tokenizer come from.

    name: a local folder or a name on the hub. is_api: the model is behind an API, and only its
    tokenizer is loaded. converted_from: the GGUF file, as the config gives it, that `name` was
    converted from; weights_hash: identifies its weights.
    """

    name: str | None
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    is_api: bool = False
    converted_from: str | None = None
    weights_hash: str | None = None

    @property
    def setting(self) -> str:
        """As the config has it, for messages."""
        return f"path={self.converted_from}" if self.converted_from else f"name={self.name}"

    @property
    def fingerprint(self) -> str:
        """Identifies the weights. Raises ConfigError where a folder holds none."""
        return self.weights_hash or pretrained.fingerprint(str(self.name), self.revision)


@dataclass(frozen=True)
class ModelSpec:
    """A teacher or a student, as a run requests it. role: `teacher` or `student`.

    make: builds or loads the model, called with `data=`, the task. max_steps: optimizer steps of
    its training; 0 for a model that is not trained here, None where `epochs` counts: passes over
    the examples. source: None for a model that is built from a size. pruning: the part of its
    teacher that a student starts from; None for any other start. settings: the role's config node,
    for artifact keys.
    """

    role: str
    make: Callable[..., Any]
    max_steps: int | None
    source: PretrainedSource | None = None
    lora: LoRASettings | None = None
    pruning: PruningSettings | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None

    @property
    def is_trained(self) -> bool:
        return bool(self.max_steps or self.epochs)

    def steps(self, examples: Any, examples_per_step: int) -> int:
        """The optimizer steps of its training: the fewest that make `epochs` passes over the
        examples. All are of full batches, so that the last one may begin another pass.

        Raises ConfigError where the number of examples is unknown.
        """
        if self.epochs is None:
            return self.max_steps or 0
        if not isinstance(examples, Sized):
            raise ConfigError(
                f"{self.role}.epochs={self.epochs} counts passes over examples, whose number is "
                f"unknown here; set {self.role}.max_steps."
            )
        # As typed: 0.1 · 30 examples are 3, and in floating point they are more.
        return math.ceil(Fraction(str(self.epochs)) * len(examples) / examples_per_step)

    @property
    def name(self) -> str:
        """For messages."""
        return (self.source and self.source.name) or "The model"

    @property
    def loaded_key(self) -> str:
        """Identifies a pretrained model that is not trained further."""
        assert self.source
        rounding = {key: self.settings.get(key) for key in ("dtype", "quantization")}
        return key_of({"weights": self.source.fingerprint} | rounding)

    def build(self, data: Any) -> PreTrainedModel:
        """Builds or loads the model. Raises ConfigError where it does not fit the data."""
        model: PreTrainedModel = self.make(data=data)
        if self.source:
            self._adapt(model, data)
            pretrained.check_complete(model, str(self.source.name), self.is_trained)
        if self.is_trained and (not self.lora or data.new_tokens) and model.dtype == torch.float16:
            raise ConfigError(
                f"{self.role}.dtype=float16: in 16 bits AdamW's epsilon is 0, and its updates are "
                f"not finite. Set {self.role}.dtype=float32 trainer.precision=16-mixed, or "
                f"{self.role}.dtype=bfloat16."
            )
        data.check_model(model, self.name)
        return model

    def outline(self, data: Any) -> PreTrainedModel:
        """The model on the meta device: its architecture, without weights."""
        with torch.device("meta"):
            if self.source is None:
                return self.make(data=data)
            source = self.source
            model = pretrained.build_outline(
                *(str(source.name), source.revision, source.trust_remote_code, data),
                source.attn_implementation,
            )
            self._adapt(model, data)
            return model

    def _adapt(self, model: PreTrainedModel, data: Any) -> None:
        if self.is_trained and data.new_tokens:
            add_rows(model, self.name, data.tokenizer, data.new_tokens)
        data.adapt_model(model, self.name, self.is_trained)


@dataclass(frozen=True)
class TeacherMember:
    """One teacher; of an ensemble, one of several.

    settings: those that decide its weights. optimizer, schedule: of its own training.
    """

    model: ModelSpec
    seed: int
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., Any]
    settings: dict[str, Any]

    @property
    def is_trained(self) -> bool:
        """Whether we train it, rather than take it as it is."""
        return self.model.is_trained


@dataclass(frozen=True)
class TeacherSpec:
    """The teachers that a run asks for.

    weights: of their probabilities. device: where they are held; None for the student's.
    api_k: log-probabilities to ask a server for, where the teacher is behind one.
    """

    members: list[TeacherMember]
    weights: list[float]
    device: str | None = None
    api_k: int | None = None

    @property
    def is_api(self) -> bool:
        source = self.members[0].model.source
        return bool(source and source.is_api)
