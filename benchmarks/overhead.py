"""What Lightning and the framework add to a training step, and what each feature costs: the demo's.

`python -m benchmarks.overhead`; contenders take turns within one process. The bare loop does the
same arithmetic, with the same models, objective, optimizer and batches, and nothing else.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig

from lightning_distill.config.catalog import CONF
from lightning_distill.config.settings import plain_settings
from lightning_distill.experiment.builder import build_run
from lightning_distill.models.frozen import Frozen
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.student import StudentModule
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.base import Workspace

DEMO = ["experiment=demo", "experiment/job=distilled", "logger=csv"]
WARM_UP = 20  # steps that are not timed

# Each in place of what the demo does.
FEATURES = {
    "as the demo trains": [],
    "every step logged (`trainer.log_every_n_steps=1`)": ["trainer.log_every_n_steps=1"],
    "`loss.fused=false`": ["loss.fused=false"],
    "`transfer=cached`": ["transfer=cached"],
    "`loss.alpha=0`": ["loss.alpha=0", "loss.hard_target=labels"],
    "`loss.hidden.weight=1`": ["loss.hidden.weight=1"],
    "`trainer.gradient_checkpointing=true`": ["trainer.gradient_checkpointing=true"],
    "`trainer.compile=true`": ["trainer.compile=true"],
}


class Step:
    """One job's training, to be run for some steps under Lightning or in a bare loop."""

    def __init__(self, overrides: list[str], folder: Path, steps: int) -> None:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg: DictConfig = compose("config", [*DEMO, f"paths.outputs={folder}", *overrides])
        self.steps, self.folder = steps + WARM_UP, folder
        self.run = build_run(plain_settings(cfg))
        self.data = self.run.make_data()
        self.data.prepare(Store(folder), None)
        torch.manual_seed(0)
        self.teacher = self.run.teacher.members[0].model.build(self.data)
        self.objective, self.transfer = self.run.make_objective(), self.run.make_transfer()
        if self.objective.needs_teacher:
            held = Teacher([lambda: self.teacher], [1.0], "untrained", 0.0, self.data)
            make = partial(self.run.trainers.trainer, folder)
            self.transfer.prepare(self.data, held, Workspace(Store(folder), folder, make))

    def module(self) -> StudentModule:
        asks = self.objective.needs_teacher and self.transfer.holds_teacher
        teacher = Frozen(self.teacher, self.data.num_classes, self.objective.fused)
        return StudentModule(
            self.run.student.build(self.data),
            [teacher] if asks else [],
            self.objective,
            self.transfer,
            self.run.optimizer,
            self.run.schedule,
            self.data.num_classes,
            shifted_labels=True,
        )

    def under_lightning(self) -> "Clock":
        clock, module = Clock(), self.module()
        module.compiles = self.run.trainers.compile
        if self.run.trainers.gradient_checkpointing:
            module.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.data.set_train_examples(self.transfer.dataset(self.data), 0)
        settings = {"max_steps": self.steps, "limit_val_batches": 0}
        trainer = self.run.trainers.trainer(
            self.folder, "student", [CSVLogger(str(self.folder))], [clock], **settings
        )
        trainer.fit(module, datamodule=self.data)
        return clock

    def in_a_bare_loop(self) -> "Clock":
        module = self.module()
        model = module.model.train()
        optimizer = self.run.optimizer(
            [
                {"params": [p for p in model.parameters() if p.ndim >= 2]},
                {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ]
        )
        schedule = self.run.schedule(optimizer, total_steps=self.steps)
        clock = Clock()
        for batch in self.batches():
            teacher, known = self.transfer.teacher_predictions(module.teachers, batch)
            terms = self.objective.terms(module.predict(batch), teacher, batch["labels"], known)
            (terms.total / terms.tokens).backward()
            torch.nn.utils.clip_grad_norm_(
                model.parameters(), self.run.trainers.gradient_clip_val or 0.0
            )
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            clock.lap()
        return clock

    def batches(self) -> Iterator[dict[str, Any]]:
        dataset, made = self.transfer.dataset(self.data), 0
        while True:
            for batch in self.data.loader(dataset, self.data.batch_size):
                if made == self.steps:
                    return
                made += 1
                yield batch


class Clock(Callback):
    def __init__(self) -> None:
        self.laps: list[float] = []

    def lap(self) -> None:
        self.laps.append(time.perf_counter())

    def on_train_batch_end(self, *args: Any) -> None:
        self.lap()

    @property
    def mean(self) -> float:
        """Of all steps: those that are logged, which also weigh each term's gradient, count in."""
        return statistics.mean(self._seconds)

    @property
    def median(self) -> float:
        """Of a step that is not logged, as most are."""
        return statistics.median(self._seconds)

    @property
    def _seconds(self) -> list[float]:
        timed = self.laps[WARM_UP - 1 :]
        return [later - earlier for earlier, later in pairwise(timed)]


def table(steps: int, rounds: int) -> list[str]:
    """Milliseconds a step; the median of the rounds."""
    torch.set_num_threads(1)
    logging.getLogger("lightning_distill").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        demo = Step([], Path(folder), steps)
        pairs = [(demo.in_a_bare_loop(), demo.under_lightning()) for _ in range(rounds)]
        bare, all_bare = [plain.median for plain, _ in pairs], [plain.mean for plain, _ in pairs]
        step, whole = [mine.median for _, mine in pairs], [mine.mean for _, mine in pairs]
        lines = [
            "| the demo's step | ms | × |",
            "| --- | ---: | ---: |",
            _row("a bare loop, the median", bare, bare),
            _row("under Lightning, the median: a step that is not logged", step, bare),
            _row("a bare loop, the mean", all_bare, all_bare),
            _row("under Lightning, the mean: every tenth step logged", whole, all_bare),
            "",
            "| with | ms | × |",
            "| --- | ---: | ---: |",
        ]
        found: dict[str, list[float]] = {name: [] for name in FEATURES}
        contenders = {name: Step(o, Path(folder), steps) for name, o in FEATURES.items()}
        for _ in range(rounds):
            for name, one in contenders.items():
                found[name].append(one.under_lightning().mean)
        first = found[next(iter(found))]
        lines += [_row(name, seconds, first) for name, seconds in found.items()]
    return lines


def _row(name: str, seconds: list[float], against: list[float]) -> str:
    ratio = statistics.median(s / a for s, a in zip(seconds, against, strict=True))
    return f"| {name} | {1e3 * statistics.median(seconds):.1f} | {ratio:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80, help="timed, a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("\n".join(table(args.steps, args.rounds)))


if __name__ == "__main__":
    main()
