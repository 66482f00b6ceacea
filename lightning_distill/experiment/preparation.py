"""What a run needs before it trains: examples, and models that fit each other."""

import logging
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from lightning_distill.data.answers import Answerer
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation.generative import check_request
from lightning_distill.experiment.builder import Run
from lightning_distill.models.pruning import prune_teacher
from lightning_distill.models.tokenizers import Tokenizers, load_tokenizers
from lightning_distill.screen import ONCE
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.optimizers import check_optimizer

log = logging.getLogger(__name__)

TEXTS = 64  # on which the tokenizers of teacher and student are compared


def check_parts(run: Run, student: bool = True) -> None:
    """Raises ConfigError where an optimizer, a schedule, the objective or the transfer refuses its
    settings. student: whether one is trained."""
    for member in run.teacher.members:
        steps = member.model.max_steps
        check_optimizer("teacher.", member.optimizer, member.schedule, steps)
    if student:
        check_optimizer("", run.optimizer, run.schedule, run.student.max_steps)
        run.make_objective()
        run.make_transfer()


def prepare_data(run: Run, sample: bool = False) -> tuple[DistillationData, DistillationData]:
    """The examples in the student's tokens and in the teacher's; one object where they share them.

    sample: a few of the teacher's answers are enough (see `Answerer`).
    Raises ConfigError where the loss or the task needs one tokenizer, and there are two.
    """
    check_request(run.evaluation, run.task)
    if not run.task.has_tokenizer:
        data = _prepared(run, None, sample)
        return data, data
    tokenizers = tokenizers_of(run)
    data = _prepared(run, tokenizers.student, sample)
    data.new_tokens = tokenizers.new_tokens
    if not tokenizers.shared:
        return data, _prepared(run, tokenizers.teacher, sample)
    if len(tokenizers.loaded) > 1:
        tokenizers.check_encoding(_sample_texts(data))
    return data, data


def tokenizers_of(run: Run) -> Tokenizers:
    """Raises ConfigError as `load_tokenizers` does."""
    models = [member.model for member in run.teacher.members]
    return load_tokenizers(models, run.student, run.shares_vocabulary, run.task.shares_tokenizer)


def _prepared(run: Run, tokenizer: Any, sample: bool) -> DistillationData:
    data = run.make_data()
    if data.is_answered_by_teacher:
        data.answerer = _answerer(run, data, sample)
    data.prepare(Store(run.outputs), tokenizer)
    log.info("%s", data.describe(), extra=ONCE)
    return data


def _answerer(run: Run, data: DistillationData, sample: bool) -> Answerer | None:
    """The teacher, where it is one model that is loaded as it is."""
    model = run.teacher.members[0].model
    is_one = len(run.teacher.members) == 1 and not run.teacher.is_api
    if not is_one or model.is_trained or model.source is None:
        return None
    return Answerer(model.loaded_key, partial(model.make, data=data), sample)


def check_intermediate_losses(
    run: Run, data: DistillationData, teacher_data: DistillationData
) -> None:
    """Raises ConfigError where an intermediate-layer loss does not fit the two models."""
    for name, term in run.make_objective().intermediate.items():
        if teacher_data is not data:
            raise ConfigError(
                f"loss.{name}.weight={term.weight:g} compares the models token by token, and "
                f"their tokenizers differ. Set loss.{name}.weight=0."
            )
        teacher = run.teacher.members[0].model.outline(data)
        term.attach(outline_student(run, data), teacher)
        if run.trainers.hardware.uses_fsdp and list(term.parameters()):
            raise ConfigError(
                f"loss.{name}.weight={term.weight:g} between models of different widths learns "
                "a projection, which trainer=fsdp does not shard. Set trainer=ddp."
            )


def outline_student(run: Run, data: DistillationData) -> PreTrainedModel:
    """On the meta device. Raises ConfigError where it cannot be a part of its teacher."""
    if run.student.pruning is None:
        return run.student.outline(data)
    teacher = run.teacher.members[0].model.outline(data)
    return prune_teacher(teacher, run.student.pruning, [])


def _sample_texts(data: DistillationData) -> list[str]:
    examples = data.examples("test")
    count = min(len(examples), TEXTS)
    return [str(data.tokenizer.decode(examples[i]["input_ids"])) for i in range(count)]
