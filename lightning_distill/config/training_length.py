"""How long a role trains: `max_steps` or `epochs`, and what validations decide.

Config files set defaults of `max_steps`, so that a file or a command that sets `epochs` means that
one. Where both are set, what the command line sets counts before what a file sets, and `epochs`
before `max_steps`. The command line itself may set only one of them.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, flag_override

from lightning_distill.config.settings import Settings, typed_keys

ROLES = ("teacher", "student")
LENGTHS = ("max_steps", "epochs")
# Arguments of `lightning.Trainer` that a training sets itself.
REPLACED = {"max_steps": "max_steps", "max_epochs": "epochs"}


def choose_length(cfg: DictConfig, settings: Settings) -> None:
    """Sets to null whichever of `max_steps` and `epochs` does not count."""
    typed = typed_keys(settings)
    for role in ROLES:
        node = settings.get(role)
        if not isinstance(node, dict) or any(node.get(key) is None for key in LENGTHS):
            continue
        by_command = [key for key in LENGTHS if f"{role}.{key}" in typed]
        if len(by_command) < len(LENGTHS):
            unused = "epochs" if by_command == ["max_steps"] else "max_steps"
            with flag_override(cfg, ["readonly", "struct"], False):
                cfg[role][unused] = None


def trained_for(node: Settings) -> str:
    """The setting that says how long a role trains; empty for a model that is not trained."""
    lengths = ((key, node.get(key)) for key in LENGTHS)
    return next((f"{key}={length}" for key, length in lengths if length), "")


def problems_of_length(settings: Settings) -> Iterator[str]:
    """What is wrong with the length of a training. settings: with one of `each_teacher`."""
    for role in ROLES:
        steps, epochs = (settings[role].get(key) for key in LENGTHS)
        given = f"{role}.max_steps={steps} and {role}.epochs={epochs}"
        if steps is None and epochs is None:
            yield f"{role}.max_steps and {role}.epochs are both null; set one of them"
        elif steps is not None and epochs is not None:
            yield f"{given} both set the length of the training; leave one of them out"
        elif epochs is not None and settings["data"].get("streaming") is True:
            yield (
                f"{role}.epochs={epochs} counts passes over examples, whose number is unknown with "
                f"data.streaming=true; set {role}.max_steps"
            )
    for key, ours in REPLACED.items():
        if (value := settings["trainer"].get(key)) is not None:
            yield f"trainer.{key}={value} has no effect; set student.{ours} or teacher.{ours}"


def problems_of_validation(settings: Settings) -> Iterator[str]:
    """What asks for validations that the student's training does not have."""
    student, trainer = settings["student"], settings["trainer"]
    keep, patience = student.get("keep"), student.get("stop_after")
    needs = [f"student.keep={keep}"] * (keep == "best")
    needs += [f"student.stop_after={patience}"] * (patience is not None)
    if needs and (missing := _without_validations(trainer)):
        yield f"{' and '.join(needs)} must have validations, and {missing}"


def _without_validations(trainer: dict[str, Any]) -> str:
    """Which setting leaves a training without validations, and what to set; empty if none does."""
    if trainer.get("val_check_interval") is None:
        return (
            "trainer.val_check_interval is null; set a share of the run, as in "
            "trainer.val_check_interval=0.1"
        )
    if trainer.get("limit_val_batches") == 0:
        return f"trainer.limit_val_batches={trainer['limit_val_batches']} has none; leave it out"
    every = trainer.get("check_val_every_n_epoch")
    if isinstance(every, int) and every > 1:
        return f"a run is one epoch of trainer.check_val_every_n_epoch={every}; leave it out"
    return ""
