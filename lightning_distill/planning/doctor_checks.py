"""The doctor's checks. Each returns what it found, or raises ConfigError with what to do."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.filesize import decimal
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_distill.constants import IGNORED
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tasks.chat import Chat
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.test_split import evaluate
from lightning_distill.experiment.preparation import check_intermediate_losses
from lightning_distill.losses.objective import nll
from lightning_distill.models.embedding import shown
from lightning_distill.models.predictions import Predictions
from lightning_distill.planning.doctor_context import Context, SkippedError
from lightning_distill.planning.estimate import missing
from lightning_distill.report.plan_table import disk_demand, memory_demand
from lightning_distill.tracking.wandb_environment import has_key

SHOWN = 3  # training examples


@dataclass(frozen=True)
class Check:
    """function: raises ConfigError if the check fails, SkippedError if it cannot be made."""

    name: str
    function: Callable[[Context], str]


def check_device(context: Context) -> str:
    """Whether this machine has what `trainer=` asks for."""
    trainers = context.run.trainers
    trainer = trainers.trainer(context.job.folder, "")
    kind = trainer.strategy.root_device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    return f"{trainers.hardware.num_devices} × {name}, {trainer.precision}"


def check_tracker(context: Context) -> str:
    if not any(logger.is_wandb for logger in context.run.loggers):
        return ", ".join(context.run.settings["logger"]) or "none"
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline: there is no key")
    return f"W&B, {mode}"


def check_text(context: Context) -> str:
    """Whether the data can be read, in the tokens of both models."""
    return context.data.describe().removeprefix("tokens: ")


def check_targets(context: Context) -> str:
    """Whether each split has valid labels."""
    return context.data.check_labels()


def check_examples(context: Context) -> str:
    """The first training examples: what is learned, and in ⟦ ⟧ what is only read."""
    data = context.data
    if data.is_streaming:
        raise SkippedError("the text is tokenized during training")
    count = min(SHOWN, len(data.examples("train")))
    shown = [data.learned_example(index) for index in range(count)]
    lines = (f"\n      {number}. {' '.join(text.split())}" for number, text in enumerate(shown, 1))
    return f"what is learned, and in ⟦ ⟧ what is only read:{''.join(lines)}"


def check_tokenizers(context: Context) -> str:
    data, teacher_data = context.data, context.teacher_data
    if not data.has_tokenizer:
        raise SkippedError("the data is not text")
    if teacher_data is not data:
        sizes = f"{len(data.tokenizer):,} and {len(teacher_data.tokenizer):,} tokens"
        return f"student and teacher have their own, of {sizes}"
    one = f"one vocabulary of {len(data.tokenizer):,} tokens"
    tokenizers, run = context.tokenizers, context.run
    if not tokenizers.loaded or not data.is_generative:
        return one
    closing = data.tokenizer.convert_ids_to_tokens(data.stop_token_ids[0])
    learned = f"to end with {closing}"
    if isinstance(data, Chat):
        learned = f"{data.chat_template or 'its chat template'}, and {learned}"
    has_teachers = run.teacher.members[0].model.source is not None
    owner = "teacher" if has_teachers else "student"
    one += f", the {owner}'s: the student learns {learned}"
    if has_teachers and run.student.source:
        *_, of_student = tokenizers.loaded.values()
        if differences := list(_differences(of_student, data, str(closing))):
            one += f"; its own tokenizer {', '.join(differences)}"
    return one


def _differences(
    tokenizer: PreTrainedTokenizerBase, data: DistillationData, closing: str
) -> Iterator[str]:
    """How the student's own tokenizer differs from what is learned."""
    if isinstance(data, Chat) and tokenizer.chat_template != data.tokenizer.chat_template:
        yield f"has {'another' if tokenizer.chat_template else 'no'} chat template"
    if tokenizer.eos_token != closing:
        yield f"ends a text with {tokenizer.eos_token}"
    if data.new_tokens:
        yield f"lacks {shown(data.new_tokens)}"


def check_settings(context: Context) -> str:
    """Whether loss, transfer and the shapes of the models are compatible."""
    run, data, teacher_data = context.run, context.data, context.teacher_data
    objective, transfer = run.make_objective(), run.make_transfer()
    transfer.check(objective, data, teacher_data)
    check_intermediate_losses(run, data, teacher_data)
    choices = context.job.choices
    return f"loss={choices['loss']} and transfer={choices['transfer']} are compatible"


def check_teacher(context: Context) -> str:
    """Whether the teacher is better than a uniform distribution, and than the student."""
    teacher = context.teacher
    student, trainer = context.student, context.run.trainers.trainer(context.job.folder, "")
    with context.prepared.limited(2 * context.dry_run_size.held_out):
        scores = evaluate(trainer, context.data, student, teacher).scores
    teacher_scores, student_scores = scores["teacher"] or {}, scores["student"] or {}
    uniform = math.log(teacher.data.num_classes)
    numbers = (
        f"nll {teacher_scores['nll']:.3f}; uniform {uniform:.3f}, "
        f"student before training {student_scores['nll']:.3f}"
    )
    remedy = "Train it longer (teacher.max_steps), or choose another."
    if not teacher_scores["nll"] < uniform:
        raise ConfigError(f"The teacher is no better than uniform: {numbers}. {remedy}")
    # Bits per byte can be compared between two tokenizers.
    metric = "bits_per_byte" if "bits_per_byte" in student_scores else "nll"
    if not teacher_scores[metric] < student_scores[metric]:
        raise ConfigError(f"The teacher is no better than the student: {numbers}. {remedy}")
    return numbers


def check_alignment(context: Context) -> str:
    """Whether the teacher predicts the label's token, and not the one before or after it."""
    if not isinstance(context.data, CausalLM) or not context.data.is_generative:
        raise SkippedError("the task does not predict next tokens")
    teacher = context.teacher
    data = teacher.data
    count = min(context.data.batch_size, context.dry_run_size.held_out)
    batch = next(iter(data.loader(data.examples("validation"), count)))
    labels = batch["labels"]
    targets = {
        "the next token": labels,
        "the one after it": torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1),
        "the current one": batch["input_ids"].masked_fill(labels == IGNORED, IGNORED),
    }
    predictions = teacher.frozen()[0](batch)
    losses = {name: _mean_nll(predictions, target) for name, target in targets.items()}
    if not min(losses.values()) < math.log(data.num_classes):
        raise SkippedError("the teacher is no better than uniform")
    numbers = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    if min(losses, key=lambda name: losses[name]) != "the next token":
        raise ConfigError(f"The teacher does not predict the next token: nll of {numbers}.")
    return f"nll of {numbers}"


def _mean_nll(predictions: Predictions, labels: Tensor) -> float:
    total, tokens = nll(predictions, labels)
    return float(total / tokens)


def check_steps(context: Context) -> str:
    """Whether a dry run succeeds, with finite losses."""
    parameters, steps = context.estimate["parameters"], context.dry_run_size.steps
    return f"a dry run of {steps} steps succeeded; the student has {parameters:,} parameters"


def check_cache(context: Context) -> str:
    """What the transfer prepares: whether it exists, and whether a given cache fits."""
    prepares = context.run.make_transfer().prepares
    for artifact in context.estimate["shared"]:
        if artifact["what"] == prepares:
            size = decimal(int(artifact["bytes"]))
            state = "exists" if artifact["there"] else f"to be made, {size}"
            return f"{artifact['what']} {artifact['id']}: {state}"
    if cache := context.run.settings["transfer"].get("cache"):
        context.run.make_transfer().check_cache(context.data, context.teacher)
        return f"{cache} matches the teacher and the text"
    return "none is needed"


def check_disk(context: Context) -> str:
    """Whether the student, the missing artifacts and a checkpoint fit on the disk."""
    outputs = context.run.outputs
    if not os.access(outputs, os.W_OK):
        raise ConfigError(f"paths.outputs={outputs} is not writable.")
    artifacts = missing(context.estimate)
    numbers, suffices = disk_demand(outputs, [context.estimate, *artifacts])
    if artifacts:
        sizes = (f"{artifact['what']} {decimal(int(artifact['bytes']))}" for artifact in artifacts)
        numbers += f"; of these {', '.join(sizes)}"
    if not suffices:
        raise ConfigError(
            f"{numbers}. Free some, set another paths.outputs, or store less per token."
        )
    return numbers


def check_memory(context: Context) -> str:
    """Whether the peak fits in the memory of the GPU, or of the machine."""
    numbers, suffices = memory_demand([context.estimate, *missing(context.estimate)])
    if not suffices:
        raise ConfigError(
            f"{numbers}. Set a smaller data.batch_size, with "
            "trainer.accumulate_grad_batches for the same step."
        )
    return numbers


# A check comes after those whose findings explain its failure.
CHECKS = (
    Check("device", check_device),
    Check("tracker", check_tracker),
    Check("text", check_text),
    Check("targets", check_targets),
    Check("examples", check_examples),
    Check("tokenizers", check_tokenizers),
    Check("settings", check_settings),
    Check("teacher", check_teacher),
    Check("alignment", check_alignment),
    Check("steps", check_steps),
    Check("cache", check_cache),
    Check("disk", check_disk),
    Check("memory", check_memory),
)
