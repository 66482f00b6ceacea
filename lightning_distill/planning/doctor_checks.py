"""The doctor's checks: each says what it found, or raises ConfigError with what to do."""

import math
import os
import shutil
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from rich.filesize import decimal
from torch import Tensor

from lightning_distill.constants import IGNORED
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.test_split import evaluate
from lightning_distill.losses.objective import nll
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.spec import ModelSpec
from lightning_distill.planning.doctor_case import Case, LeftOutError
from lightning_distill.report.plan_table import total_memory
from lightning_distill.run.preparation import check_intermediate_losses
from lightning_distill.tracking.wandb_run import has_key

BATCHES = 4  # of the test split, on which teacher and student are compared
TEXTS = 64  # that two tokenizers have to read alike


def settings(case: Case) -> str:
    """Loss, transfer and the models' shapes go together."""
    data, teacher_data = case.both
    case.transfer.check(case.objective, data, teacher_data, len(case.run.teacher.members))
    check_intermediate_losses(case.run, data, teacher_data)
    choices = HydraConfig.get().runtime.choices
    return f"loss={choices['loss']} and transfer={choices['transfer']} go together"


def text(case: Case) -> str:
    return case.data.describe().removeprefix("tokens: ")


def targets(case: Case) -> str:
    """Every split has something that is there to be predicted."""
    return case.data.check_labels()


def tokenizers(case: Case) -> str:
    """Teacher and student give the same text the same ids."""
    data, teacher_data = case.both
    if not data.has_tokenizer:
        raise LeftOutError("there is no text")
    if teacher_data is not data:
        return f"two, of {len(data.tokenizer):,} and {len(teacher_data.tokenizer):,} tokens"
    specs = (case.run.teacher.members[0].model, case.run.student)
    rows = [_rows(spec, data) for spec in specs]
    padded = f", in {rows[0]:,} and {rows[1]:,} embedding rows" if len(set(rows)) > 1 else ""
    return f"one vocabulary of {len(data.tokenizer):,} tokens{padded}"


def _rows(spec: ModelSpec, data: DistillationData) -> int:
    if spec.source and spec.source.is_api:
        return len(data.tokenizer)
    embeddings: Any = spec.outline(data).get_input_embeddings()
    return int(embeddings.num_embeddings)


def device(case: Case) -> str:
    """What `trainer=` asks for is there."""
    trainer = case.run.trainers.trainer(case.job.folder, "")
    kind = trainer.strategy.root_device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    return f"{case.run.trainers.hardware.num_devices} × {name}, {trainer.precision}"


def teacher(case: Case) -> str:
    """It is better than chance, and than the student."""
    found, (name, student) = case.teacher, case.student
    trainer = case.run.trainers.trainer(case.job.folder, "", limit_test_batches=BATCHES)
    scores = evaluate(trainer, case.data, student, found)
    theirs, own = scores["teacher"], scores["student"]
    assert theirs
    assert own
    uniform = math.log(found.data.num_classes)
    said = f"nll {theirs['nll']:.3f}; of chance {uniform:.3f}, of {name} {own['nll']:.3f}"
    remedy = "Train it longer (teacher.max_steps), or choose another."
    if not theirs["nll"] < uniform:
        raise ConfigError(f"The teacher is no better than chance: {said}. {remedy}")
    measure = "bits_per_byte" if "bits_per_byte" in own else "nll"  # the same in any tokens
    if not theirs[measure] < own[measure]:
        raise ConfigError(f"The teacher is no better than the student: {said}. {remedy}")
    return said


def alignment(case: Case) -> str:
    """The teacher predicts the token that the label is, and not one beside it."""
    if not isinstance(case.data, CausalLM) or not case.data.is_generative:
        raise LeftOutError("no token follows another")
    found = case.teacher
    batch = next(iter(found.data.loader(found.data.examples("validation"), case.data.batch_size)))
    labels = batch["labels"]
    beside = {
        "the next token": labels,
        "the one after": torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1),
        "the one it reads": batch["input_ids"].masked_fill(labels == IGNORED, IGNORED),
    }
    ask = found.frozen()[0]
    losses = {name: _mean_nll(ask, batch, target) for name, target in beside.items()}
    said = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    if not min(losses.values()) < math.log(found.data.num_classes):
        raise LeftOutError("the teacher predicts no better than chance")
    if not min(losses, key=lambda name: losses[name]) == "the next token":
        raise ConfigError(f"The teacher does not predict the next token: nll of {said}.")
    return f"nll of {said}"


def _mean_nll(model: Frozen, batch: dict[str, Tensor], labels: Tensor) -> float:
    total, tokens = nll(model(batch), labels)
    return float(total / tokens)


def cache(case: Case) -> str:
    """What the teacher makes ahead is there, is the one that the user names, or is to be made."""
    made = [one for one in case.requirements["shared"] if one["what"] != "teacher"]
    if made:
        (one,) = made
        there = "there" if one["there"] else f"to be made, {decimal(int(one['bytes']))}"
        return f"{one['what']} {one['id']}: {there}"
    if case.cfg.transfer.get("cache"):
        case.transfer.check_cache(case.data, case.teacher)
        return f"{case.cfg.transfer.cache} is this teacher's, of this text"
    return "none is needed"


def steps(case: Case) -> str:
    """A few steps of everything give numbers."""
    return (
        f"a run in small went well: {case.requirements['parameters']:,} parameters in the student"
    )


def disk(case: Case) -> str:
    """There is room for students, caches and checkpoints."""
    needed = [case.requirements, *(one for one in case.requirements["shared"] if not one["there"])]
    size, free = sum(one["bytes"] for one in needed), shutil.disk_usage(case.cfg.paths.outputs).free
    if not os.access(case.cfg.paths.outputs, os.W_OK):
        raise ConfigError(f"paths.outputs={case.cfg.paths.outputs} cannot be written to.")
    parts = ", ".join(f"{one['what']} {decimal(int(one['bytes']))}" for one in needed[1:])
    said = f"{decimal(int(size))}{f' ({parts})' if parts else ''} of {decimal(free)} that are free"
    if size > free:
        raise ConfigError(f"{said}. Free some, set another paths.outputs, or keep less a token.")
    return said


def memory(case: Case) -> str:
    """At its most it is there."""
    needed = [case.requirements, *(one for one in case.requirements["shared"] if not one["there"])]
    most, there = max(one["memory_mb"] for one in needed) * 1e6, total_memory()
    said = f"{decimal(int(most))} of {decimal(there)}"
    if most > there:
        raise ConfigError(
            f"{said}. Set a smaller data.batch_size, with "
            "trainer.accumulate_grad_batches for the same step."
        )
    return said


def tracker(case: Case) -> str:
    if "wandb" not in case.cfg.logger:
        return ", ".join(case.cfg.logger) or "none"
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline: there is no key")
    return f"W&B, {mode}"
