"""Teachers and students: transformers' own classes, built from a size or loaded.

`data` is a DistillationData: it knows the task, and so the class of models.
"""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.errors import ConfigError
from lightning_distill.models import pretrained
from lightning_distill.models.pretrained import load_tokenizer

# How a model begins and is trained stands beside what it is, in the same node: teacher.max_steps
# and teacher.hidden_size. The rest of the node is what builds it.
TRAINING = {
    *("max_steps", "seed", "optimizer", "schedule", "members", "weights", "device"),
    *("initialize", "layers", "lora"),
}


def architecture(role: DictConfig) -> dict[str, Any]:
    """What a `teacher` or `student` node says of the model itself."""
    settings = OmegaConf.to_container(role, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key not in TRAINING}


def build_model(role: DictConfig, data: Any) -> PreTrainedModel:
    """A new model, or a loaded one. Raises ConfigError where it does not fit the data."""
    model: PreTrainedModel = instantiate(architecture(role), data=data)
    if "name" in role:
        data.adapt_model(model, role.name, bool(role.get("max_steps")))
    data.check_model(model, role.get("name", "The model"))
    return model


def outline_model(role: DictConfig, data: Any) -> PreTrainedModel:
    """The model without its weights, to look at before anything is loaded or trained."""
    with torch.device("meta"):
        if "name" in role:
            told = role.name, role.revision, role.trust_remote_code, data
            model = pretrained.outline(*told, role.get("attn_implementation"))
            data.adapt_model(model, role.name, bool(role.get("max_steps")))
            return model
        return instantiate(architecture(role), data=data)


def load_tokenizers(
    teachers: Sequence[DictConfig], student: DictConfig, shared: bool, alike: bool = False
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """The teachers' tokenizer and the student's: the same one if they share a vocabulary.

    A model built from a size takes over the other's; both are None if all are built from a size.
    shared: whether the loss needs one vocabulary. alike: whether the task does, whatever the loss.
    Raises ConfigError if one does and the same id would be read as different text.
    """
    theirs = [_own_tokenizer("teacher", node) for node in teachers if "name" in node]
    own = _own_tokenizer("student", student) if "name" in student else None
    for node, other in zip(teachers, theirs, strict=False):
        if other.get_vocab() != theirs[0].get_vocab():
            raise ConfigError(
                f"teacher.members: {node.name} ({len(other)} tokens) and {teachers[0].name} "
                f"({len(theirs[0])} tokens) have different vocabularies; their probabilities "
                "cannot be averaged."
            )
    first = theirs[0] if theirs else own
    if first is None or own is None or first.get_vocab() == own.get_vocab():
        return first, first
    if shared or alike:
        remedy = "Choose loss=universal, which needs no shared vocabulary."
        if "url" in teachers[0]:
            remedy = "Choose a student of its tokenizer, or of a size, as in student=s."
        if alike:
            remedy = "They read one batch here: choose a student of the teacher's tokenizer."
        raise ConfigError(
            f"teacher.name={teachers[0].name} ({len(first)} tokens) and student.name="
            f"{student.name} ({len(own)} tokens) have different vocabularies: the same id is not "
            f"the same text. {remedy}"
        )
    return first, own


def _own_tokenizer(role: str, node: DictConfig) -> PreTrainedTokenizerBase:
    if "url" in node:  # a teacher behind a server
        name = node.name if node.tokenizer is None else node.tokenizer
        try:
            return load_tokenizer(name, None, False)
        except ConfigError as error:
            raise ConfigError(
                f"{error} Set teacher.tokenizer to a local folder or a name on the hub."
            ) from error
    if node.name is None:
        raise ConfigError(
            f"{role}=pretrained needs {role}.name=<a local folder or a name on the hub>."
        )
    try:
        return load_tokenizer(node.name, node.revision, node.trust_remote_code)
    except ConfigError as error:
        raise ConfigError(f"{role}.{error}") from error
