"""A finished student, and its teacher where there is one: on the held-out test split, in what they
write, and in what `evaluate` asks for."""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_distill.constants import IGNORED
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.distributed import process_group
from lightning_distill.distributed.fsdp import uses_fsdp
from lightning_distill.errors import ConfigError
from lightning_distill.evaluation import generation_speed, lm_eval_tasks
from lightning_distill.losses.ensemble import mean_of
from lightning_distill.metrics.quality import Likeness
from lightning_distill.models import pretrained
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.inspection import count_parameters
from lightning_distill.models.sharding import shard
from lightning_distill.storage.artifacts import Store, write_atomic
from lightning_distill.training.fit import make_trainer
from lightning_distill.training.teacher import Teacher

log = logging.getLogger(__name__)

SIGHT = 2  # batches of the validation split that a teacher is judged by at first
POSITIONS = 512  # whose logits are held at a time


def evaluate_all(
    cfg: DictConfig,
    data: DistillationData,
    folder: Path,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
    log_samples: Callable[[list[dict[str, str]]], None] | None = None,
) -> dict[str, Any]:
    """Scores on the test split, of what is written, and what else `evaluate` asks for; and samples
    to read, in the log and in samples.json.

    student: the one that is saved in the folder.
    """
    teacher = teacher if teacher and not teacher.served else None  # a served one gives no text
    trainer = make_trainer(cfg, folder, "on the test split")
    student = _out_of_shards(trainer, data, folder, student, teacher)  # of the training
    scores = evaluate(trainer, data, student, teacher)
    student = _out_of_shards(trainer, data, folder, student, teacher)  # which write nothing
    if not process_group.is_rank_zero():  # what follows is text, which one of them writes
        process_group.barrier()
        return scores
    device = trainer.strategy.root_device
    for role, more in score_writing(cfg.evaluate, data, student, teacher, device).items():
        scores[role] = {**(scores[role] or {}), **more}
    if student is not None:
        samples = write_samples(data, student, teacher, cfg.seed)
        text = json.dumps(samples, indent=2, ensure_ascii=False)
        write_atomic(folder / "samples.json", text.encode())
        if log_samples:
            log_samples(samples)
        for sample in samples:
            log.info("%s", "\n".join(f"{who:>8}: {text!r}" for who, text in sample.items()))
    process_group.barrier()
    return scores


def _out_of_shards(
    trainer: L.Trainer,
    data: DistillationData,
    folder: Path,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
) -> PreTrainedModel | None:
    """The student, read anew where it lies in shards; its teacher is when it is next asked."""
    if teacher and uses_fsdp(trainer):
        teacher.release()
    if isinstance(student, FSDPModule):
        whole: PreTrainedModel = pretrained.saved(data.auto_class, folder / "student")
        return whole
    return student


class Evaluation(L.LightningModule):
    """Runs student, teacher or both over the same batches; `trainer.test` drives it.

    models: of each role, one or several whose probabilities are averaged by `weights`.
    quality: makes what measures each of them.
    """

    def __init__(
        self,
        models: dict[str, list[Frozen]],
        weights: list[float],
        quality: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.models: Any = nn.ModuleDict({k: nn.ModuleList(m) for k, m in models.items()})
        self.quality: Any = nn.ModuleDict({k: quality() for k in models})
        self.likeness = Likeness() if len(models) == 2 else None
        self.weights = weights
        self.found: dict[str, dict[str, Any]] = {}

    def configure_model(self) -> None:
        if uses_fsdp(self.trainer):
            shard(self, [one.predict for models in self.models.values() for one in models])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        labels = batch["labels"].flatten()
        said = {role: [model(batch) for model in models] for role, models in self.models.items()}
        # The logits of a few positions at a time: those of a whole batch may not fit.
        for kept in (labels != IGNORED).nonzero()[:, 0].split(POSITIONS):
            if not len(kept):  # a rank's filler
                continue
            found = {}
            for role, predictions in said.items():
                each = [F.log_softmax(one.at(kept).logits(), dim=-1) for one in predictions]
                found[role] = mean_of(each, self.weights)
                self.quality[role].update(found[role], labels[kept])
            if self.likeness:
                self.likeness.update(found["student"], found["teacher"])

    def on_test_epoch_end(self) -> None:
        """Over all devices, as long as the numbers are still on them."""
        self.found = {name: quality.compute() for name, quality in self.quality.items()}
        if self.likeness:
            self.found["student"] |= self.likeness.compute()


def evaluate(
    trainer: L.Trainer,
    data: DistillationData,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
) -> dict[str, dict[str, Any] | None]:
    """The numbers of `results.json` for `teacher` and `student`; None for what is not there.

    nll in nats per prediction on the test split, of text each in its own tokens. Only where they
    share them can the student be said to be like its teacher.
    """
    found: dict[str, dict[str, Any] | None] = {"teacher": None, "student": None}
    runs: list[tuple[DistillationData, dict[str, list[Frozen]]]] = []
    if student is not None:
        runs.append((data, {"student": [Frozen(student, data.num_classes)]}))
    if teacher is not None:
        if not runs or teacher.data is not data:
            runs.append((teacher.data, {}))
        runs[-1][1]["teacher"] = teacher.frozen()
    for own, models in runs:
        weights = teacher.weights if teacher else [1.0]
        evaluation = Evaluation(models, weights, own.quality_metric)
        trainer.test(evaluation, own, verbose=False)
        for role, scores in evaluation.found.items():
            size = sum(count_parameters(one.model) for one in models[role])
            found[role] = {"parameters": size, **scores}
    return found


def check_teacher_quality(
    teacher: Teacher,
    student: PreTrainedModel | None,
    data: DistillationData,
    store: Store,
    make_trainer: Callable[..., L.Trainer],
) -> None:
    """Warns of a teacher who knows less than nothing, or less than its student does already.

    By nll on a part of the validation split; the teacher's is kept for the other jobs of a sweep.
    student: where it is not untrained.
    """

    def nll(role: str, models: list[Frozen], weights: list[float], own: DistillationData) -> float:
        trainer = make_trainer(f"{role} at first sight", limit_test_batches=SIGHT)
        evaluation = Evaluation({role: models}, weights, own.quality_metric)
        trainer.test(evaluation, own.val_dataloader(), verbose=False)
        if uses_fsdp(trainer):
            teacher.release()  # whole again, where it is asked for next
        return float(evaluation.found[role]["nll"])

    def make(folder: Path) -> dict[str, Any]:
        return {"nll": nll("teacher", teacher.frozen(), teacher.weights, teacher.data)}

    made_from = {"teacher": teacher.hash, "tokens": teacher.data.artifact.key, "batches": SIGHT}
    made_from |= {"examples": teacher.data.example_settings | {"data.batch_size": data.batch_size}}
    theirs = store.get("sight", made_from, make, on_all_ranks=True).manifest["content"]["nll"]
    uniform = math.log(teacher.data.num_classes)
    if not theirs < uniform:
        log.warning(
            "the teacher's nll is %.3f, and %.3f would be that of no knowledge at all: is it made "
            "for other data, or for another tokenizer?", theirs, uniform,
        )  # fmt: skip
    elif student is not None and teacher.data is data:
        as_it_is = Frozen(copy.deepcopy(student), data.num_classes)
        own = nll("student", [as_it_is], [1.0], data)
        if own < theirs:
            log.warning(
                "the student's nll is %.3f before it is trained, the teacher's %.3f: there may be "
                "little to learn from it", own, theirs,
            )  # fmt: skip


def check_requested(asked: DictConfig, task: type[DistillationData]) -> None:
    """Raises ConfigError where what `evaluate` asks for cannot be measured, before anything is
    trained."""
    if (asked.get("tasks") or asked.get("speed")) and not task.is_generative:
        raise ConfigError(
            "evaluate.tasks and evaluate.speed are for models that write, which those of this "
            "data are not. Set evaluate.tasks=[] evaluate.speed=false."
        )
    lm_eval_tasks.load_tasks(asked)


def score_writing(
    asked: DictConfig,
    data: DistillationData,
    student: PreTrainedModel | None,
    teacher: Teacher | None,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """The task's scores of what each role writes; `tasks` and `speed` as far as `evaluate` asks for
    them. Of several teachers the first one's."""
    if not data.is_generative:
        return {}
    models, texts = {}, {}
    if student is not None:
        models["student"], texts["student"] = student, data
    if teacher is not None:
        models["teacher"], texts["teacher"] = teacher.models[0], teacher.data
    tasks = lm_eval_tasks.load_tasks(asked)
    if tasks or asked.get("speed"):
        if teacher and len(teacher.models) > 1:
            log.info("evaluate: of %s teachers the first one is asked", len(teacher.models))
        if teacher is None:
            log.info("evaluate: without a teacher that is here, the student alone")
    with _on(device, list(models.values())):
        found = {
            role: dict[str, Any](texts[role].score_generation(m)) for role, m in models.items()
        }
        if tasks:
            known = {"teacher": teacher.hash if teacher else None}
            scores = {
                role: tasks.scores(model, texts[role].tokenizer, known.get(role))
                for role, model in models.items()
            }
            log.info("evaluate.tasks\n%s", lm_eval_tasks.table(scores))
            for role, one in scores.items():
                found[role]["tasks"] = one
        if asked.get("speed"):
            speeds = generation_speed.speeds(models)
            log.info("evaluate.speed\n%s", generation_speed.compare(speeds))
            for role, numbers in speeds.items():
                found[role]["speed"] = numbers
    return found


@contextmanager
def _on(device: torch.device, models: list[PreTrainedModel]) -> Iterator[None]:
    """There for a while: Lightning leaves models on the processor when it is done with them."""
    before = [(model, model.device) for model in models if model.device != device]
    for model, _ in before:
        model.to(device)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for model, place in before:
            model.to(place)  # type: ignore[arg-type]


def write_samples(
    data: DistillationData, student: PreTrainedModel, teacher: Teacher | None, seed: int
) -> list[dict[str, str]]:
    """What student and teacher make of the same few test examples. Of several teachers, the first
    one is asked."""
    samples = []
    for number, prompt in enumerate(data.sample_prompts()):
        sample = {"prompt": prompt, "student": data.sample_answer(student, number, None, seed)}
        if teacher is not None:
            shown = None if teacher.data is data else prompt
            model = teacher.models[0]
            sample["teacher"] = teacher.data.sample_answer(model, number, shown, seed)
        samples.append(sample)
    return samples
