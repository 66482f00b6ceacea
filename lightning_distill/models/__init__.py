"""Teachers and students: transformers' own classes, built from a size or loaded."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill import ConfigError
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.pretrained import load_tokenizer

__all__ = ["Frozen", "architecture", "build", "count_parameters", "shared_tokenizer"]

# How a model is trained stands beside what it is, in the same node: teacher.max_steps and
# teacher.hidden_size. The rest of the node is what builds it.
TRAINING = {"max_steps", "seed", "optimizer", "schedule"}


def architecture(role: DictConfig) -> dict[str, Any]:
    """What a `teacher` or `student` node says of the model itself."""
    settings = OmegaConf.to_container(role, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key not in TRAINING}


def build(
    role: DictConfig, tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> PreTrainedModel:
    """Raises ConfigError if the model cannot read the tokens, or blocks of that length."""
    model = instantiate(architecture(role), tokenizer=tokenizer)
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(tokenizer):
        raise ConfigError(
            f"{role.get('name', 'The model')} has {rows} embedding rows, the tokenizer "
            f"{len(tokenizer)} tokens: they do not belong together."
        )
    positions = getattr(model.config, "max_position_embeddings", None) or sequence_length
    if positions < sequence_length:
        raise ConfigError(
            f"data.sequence_length={sequence_length} is longer than the {positions} positions "
            "(max_position_embeddings) of the model."
        )
    return model


def shared_tokenizer(teacher: DictConfig, student: DictConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer that pretrained models bring; None if both are built from a size.

    Raises ConfigError if teacher and student would read the same ids as different text.
    """
    found = {}
    for name, role in (("teacher", teacher), ("student", student)):
        if "name" in role:
            if role.name is None:
                raise ConfigError(
                    f"{name}=pretrained needs {name}.name=<a local folder or a name on the hub>."
                )
            found[name] = load_tokenizer(role.name, role.revision, role.trust_remote_code)
    tokenizers = list(found.values())
    if len(tokenizers) == 2 and tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        sizes = [len(t) for t in tokenizers]
        raise ConfigError(
            f"teacher.name={teacher.name} ({sizes[0]} tokens) and student.name={student.name} "
            f"({sizes[1]} tokens) have different vocabularies: the same id is not the same text. "
            "Choose models that share one."
        )
    return tokenizers[0] if tokenizers else None


def count_parameters(model: PreTrainedModel) -> int:
    """Each weight once, also where output and embedding are tied."""
    return sum(p.numel() for p in model.parameters())
