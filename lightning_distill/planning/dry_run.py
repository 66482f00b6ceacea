"""The whole pipeline in small: a few steps of each of its parts, to tell what all of them take.

It is `pipeline.distill` itself, in a folder of its own, so that what is timed is what will run.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, open_dict

from lightning_distill.pipeline import distill
from lightning_distill.planning.step_profiler import WARM
from lightning_distill.run.settings import hardware, plain_settings
from lightning_distill.storage.artifacts import Artifact, Store
from lightning_distill.sweeps.job import Job

STEPS = 20  # optimizer steps of each training; every second one is logged
BATCHES = 4  # of each pass over held-out text; the first is not timed
NOTES = "batches.jsonl"

Note = dict[str, Any]  # a line of the stopwatch's


@dataclass
class Training:
    """What a training costs, in seconds where nothing else is said."""

    step: float  # with its share of the steps that are logged
    flops: float  # of a step
    validation: float  # the whole split
    save: float  # a checkpoint
    memory_mb: float

    def seconds(self, cfg: DictConfig, max_steps: int) -> float:
        batches = max_steps * cfg.trainer.accumulate_grad_batches
        interval = cfg.trainer.get("val_check_interval") or 1.0
        every = int(batches * interval) if isinstance(interval, float) else interval
        validations = batches // max(every, 1)
        saves = max_steps // cfg.checkpoint_every_n_steps
        return max_steps * self.step + validations * self.validation + saves * self.save


@dataclass
class Ahead:
    """What the teacher costs that labels or writes ahead: a unit is a block or a sequence."""

    kind: str  # of artifact
    unit_seconds: float
    unit_flops: float  # 0 where it writes, which is not counted
    unit_bytes: float
    seconds: float  # besides the units
    bytes: float
    memory_mb: float


@dataclass
class DryRun:
    """What the parts of a run cost, in seconds where nothing else is said."""

    student: Training
    teachers: list[Training]  # those that were trained; else empty
    teacher_rest: float  # of each, besides its training: to start and to save it
    teacher_bytes: float  # of each
    ahead: Ahead | None
    evaluation: float  # the whole test split
    rest: float  # start, samples, saving
    student_parameters: int
    teacher_parameters: int | None  # None where the run has no teacher
    run_bytes: int  # of a run's folder, without its checkpoint
    checkpoint_bytes: int
    devices: int

    @classmethod
    def read(cls, kept: dict[str, Any]) -> "DryRun":
        """From what `rehearse` returns, which a manifest keeps."""
        parts = {
            "student": Training(**kept["student"]),
            "teachers": [Training(**one) for one in kept["teachers"]],
            "ahead": Ahead(**kept["ahead"]) if kept["ahead"] else None,
        }
        return cls(**{**kept, **parts})


def profile_dry_run(
    cfg: DictConfig, job: Job, store: Store, trained: Sequence[Artifact], folder: Path
) -> dict[str, Any]:
    """Runs it all in small, in a folder that is empty afterwards. Returns a DryRun, as a dict.

    trained: the teachers, where all that are needed are there; they are used as they are.
    """
    _clear(folder)  # of an attempt that was interrupted
    copy, run = Store(folder / "outputs"), folder / "run"
    for kind in ("tokenizer", "tokens"):  # which are made already
        _link(store.root / kind, copy.root / kind)
    for teacher in trained:
        _link(teacher.folder, copy.root / "teacher" / teacher.key)
    try:
        start = time.perf_counter()
        with quietly():
            results = distill(in_small(cfg, folder, bool(trained)), replace(job, folder=run))
        wall = time.perf_counter() - start
        notes = [json.loads(line) for line in (folder / NOTES).read_text().splitlines()]
        return asdict(_weigh(cfg, notes, results, wall, copy.root, run))
    finally:
        _clear(folder)


def in_small(cfg: DictConfig, folder: Path, has_teachers: bool) -> DictConfig:
    """The same run with few steps, on few blocks and little held-out text."""
    small = cfg.copy()
    with open_dict(small):
        small.paths.outputs = str(folder / "outputs")
        small.logger = {}
        small.evaluate.update(tasks=[], speed=False)
        small.checkpoint_every_n_steps = STEPS
        small.student.max_steps = STEPS
        for node in [small.teacher, *(small.teacher.get("members") or [])]:
            if not has_teachers and node.get("max_steps"):
                node.max_steps = STEPS
        transfer = instantiate(cfg.transfer)
        small.transfer.update(
            transfer.dry_run_settings(cfg.data.batch_size, api_teacher="url" in cfg.teacher)
        )
        watch = {
            "_target_": "lightning_distill.planning.step_profiler.StepProfiler",
            "file": str(folder / NOTES),
        }
        small.trainer.update(
            callbacks=[watch, *(cfg.trainer.get("callbacks") or [])],
            log_every_n_steps=min(2, cfg.trainer.log_every_n_steps),
            val_check_interval=STEPS * cfg.trainer.accumulate_grad_batches,
            limit_val_batches=BATCHES,
            limit_test_batches=BATCHES,
        )
    return small


def _weigh(
    cfg: DictConfig,
    notes: list[Note],
    results: dict[str, Any],
    wall: float,
    artifacts: Path,
    run: Path,
) -> DryRun:
    cost = results["cost"]
    students, teachers = (
        [note for note in notes if note["module"] == name]
        for name in ("StudentModule", "TeacherModule")
    )
    tests = [note for note in notes if note["stage"] == "test"]
    asked = [note for note in notes if note["stage"] == "predict"]
    (student,) = _trainings(cfg, students)
    student.memory_mb = cost["peak_memory_mb"]
    trained = _trainings(cfg, teachers)
    own = wall - cost["teacher_seconds"] - cost["transfer_seconds"]
    made = list((artifacts / "teacher").glob("*/manifest.json"))
    return DryRun(
        student,
        trained,
        (cost["teacher_seconds"] - _timed(teachers)) / max(len(trained), 1),
        mean(_size(file.parent) for file in made) if trained else 0.0,
        _ahead(cfg, asked, cost["transfer_seconds"], artifacts),
        sum(_whole(note) for note in tests),
        max(own - _timed(students) - _timed(tests), 0.0),
        results["student"]["parameters"],
        (results["teacher"] or {}).get("parameters"),
        _size(run) - _size(run / "checkpoints"),
        _size(run / "checkpoints"),
        hardware(plain_settings(cfg)).num_devices,
    )


def _trainings(cfg: DictConfig, notes: list[Note]) -> list[Training]:
    """Of the notes of one role's module; several, where there are several teachers."""
    fits = [note for note in notes if note["stage"] == "train"]
    passes = [_whole(note) for note in notes if note["stage"] == "validate"]
    every = cfg.trainer.log_every_n_steps
    found = []
    for fit, validation in zip(fits, passes or [0.0] * len(fits), strict=True):
        batches, parts = fit["seconds"], fit["parts"]  # which may not be as many as asked for
        steps = [sum(batches[i : i + parts]) for i in range(0, len(batches), parts)][WARM:]
        logged = fit["logged"][parts - 1 :: parts][WARM:]
        plain = [s for s, log in zip(steps, logged, strict=True) if not log] or steps
        more = [s for s, log in zip(steps, logged, strict=True) if log] or plain
        step = mean(plain) + (mean(more) - mean(plain)) / every if every else mean(plain)
        flops = fit["flops"] * parts * hardware(plain_settings(cfg)).num_devices
        found.append(Training(step, flops, validation, fit.get("save", 0.0), fit["memory_mb"]))
    return found


def _ahead(cfg: DictConfig, notes: list[Note], seconds: float, artifacts: Path) -> Ahead | None:
    transfer: Any = get_class(cfg.transfer._target_)
    folders = [file.parent for file in artifacts.glob(f"{transfer.prepares}/*/manifest.json")]
    if not notes or not folders:
        return None
    folder = folders[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    settings, per_token = manifest["made_from"], manifest["content"].get("bytes_per_token")
    units = settings[transfer.unit_count_key]
    if per_token is None:
        each = _size(folder) / units
    else:
        each = per_token * manifest["content"]["positions"]
    timed = notes[0]["seconds"][1:] or notes[0]["seconds"]
    batch = units / len(notes[0]["seconds"])
    return Ahead(
        manifest["kind"],
        mean(timed) / batch,
        notes[0]["flops"] / batch,
        each,
        seconds - sum(notes[0]["seconds"]),
        _size(folder) - each * units,
        notes[0]["memory_mb"],
    )


def _whole(note: Note) -> float:
    """Seconds of all batches of a pass of which some were timed."""
    timed = note["seconds"][1:] or note["seconds"]
    return mean(timed) * float(note["whole"])


def _timed(notes: list[Note]) -> float:
    return sum(sum(note["seconds"]) + note.get("save", 0.0) for note in notes)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _link(there: Path, here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(there, target_is_directory=True)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the lines that the run itself would log."""
    ours = logging.getLogger("lightning_distill")
    before = ours.level
    ours.setLevel(logging.WARNING)
    try:
        yield
    finally:
        ours.setLevel(before)
