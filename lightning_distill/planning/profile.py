"""What a dry run measured, from which the cost of the whole run follows."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.experiment.builder import Run
from lightning_distill.planning.dry_run_size import DryRunSize
from lightning_distill.storage.artifacts import read_manifest
from lightning_distill.training.cost import peak_memory_mb
from lightning_distill.training.trainer import TrainerFactory

Record = dict[str, Any]  # a line of the StepProfiler


@dataclass(frozen=True)
class PartCost:
    """The cost of one part of a run, by its units.

    The units of a training are optimizer steps, those of a preparation blocks or sequences.
    validation_seconds: of the whole split. save_seconds: of a checkpoint. evaluation_seconds: of
    the teacher check and the test split. answer_seconds: of generated answers and samples.
    """

    unit_seconds: float
    unit_flops: float  # 0 for generated text, whose FLOPs are not counted
    memory_mb: float  # peak
    unit_bytes: float = 0.0
    other_seconds: float = 0.0
    other_bytes: float = 0.0
    validation_seconds: float = 0.0
    save_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    answer_seconds: float = 0.0

    def estimate(self, units: int, trainers: TrainerFactory) -> dict[str, Any]:
        """seconds and their parts, flops, bytes on disk and memory_mb of so many units."""
        batches = units * trainers.accumulate_grad_batches
        interval = trainers.val_check_interval or 1.0
        every = int(batches * interval) if isinstance(interval, float) else interval
        validations, saves = batches // max(every, 1), units // trainers.checkpoint_every_n_steps
        training = units * self.unit_seconds
        training += validations * self.validation_seconds + saves * self.save_seconds
        parts = {
            "training_seconds": training,
            "evaluation_seconds": self.evaluation_seconds,
            "answer_seconds": self.answer_seconds,
        }
        return {
            "count": units,
            **parts,
            "seconds": self.other_seconds + sum(parts.values()),
            "flops": units * self.unit_flops,
            "bytes": self.other_bytes + units * self.unit_bytes,
            "memory_mb": self.memory_mb,
        }


@dataclass(frozen=True)
class DryRunProfile:
    """The costs of the parts of a run.

    teachers: those trained in the dry run. checkpoint_bytes: of the student, which `student`
    leaves out. teacher_parameters: of all teachers together, None without one.
    """

    student: PartCost
    teachers: list[PartCost]
    preparation: PartCost | None
    student_parameters: int
    teacher_parameters: int | None
    checkpoint_bytes: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DryRunProfile":
        """The inverse of `dataclasses.asdict`."""
        preparation = values["preparation"]
        parts = {
            "student": PartCost(**values["student"]),
            "teachers": [PartCost(**cost) for cost in values["teachers"]],
            "preparation": PartCost(**preparation) if preparation else None,
        }
        return cls(**{**values, **parts})


def summarize_profile(
    run: Run,
    size: DryRunSize,
    data: DistillationData,
    records: list[Record],
    results: dict[str, Any],
    seconds: float,
    artifacts: Path,
    folder: Path,
) -> DryRunProfile:
    """seconds: of the dry run. artifacts, folder: where it wrote its artifacts and results."""
    of_student = [record for record in records if record["module"] == "StudentModule"]
    of_teachers = [record for record in records if record["module"] == "TeacherModule"]
    tests = [record for record in records if record["stage"] == "test"]
    cost, devices = results["cost"], run.trainers.hardware.num_devices
    checkpoint_bytes = _size(folder / "checkpoints")
    other_seconds = seconds - cost["teacher_seconds"] - cost["transfer_seconds"]
    other_seconds -= _measured_seconds(of_student) + _measured_seconds(tests)
    batch_size = 8 * run.trainers.batch_size * devices
    lengths = {split: len(data.examples(split)) for split in ("validation", "test")}
    (student,) = _training_costs(of_student, size, lengths["validation"], batch_size, devices)
    teachers = _training_costs(of_teachers, size, lengths["validation"], batch_size, devices)
    models = [one for one in (results["student"], results["teacher"]) if one]
    if teachers:
        rest = (cost["teacher_seconds"] - _measured_seconds(of_teachers)) / len(teachers)
        num_bytes = mean(_size(file.parent) for file in artifacts.glob("teacher/*/manifest.json"))
        teachers = [replace(one, other_seconds=rest, other_bytes=num_bytes) for one in teachers]
    return DryRunProfile(
        student=replace(
            student,
            other_seconds=max(other_seconds, 0.0),
            evaluation_seconds=sum(pass_seconds(one, lengths["test"], batch_size) for one in tests),
            answer_seconds=sum(one.get("answer_seconds", 0.0) for one in models),
            other_bytes=_size(folder) - checkpoint_bytes,
        ),
        teachers=teachers,
        preparation=_preparation_cost(run, records, cost["transfer_seconds"], artifacts),
        student_parameters=results["student"]["parameters"],
        teacher_parameters=(results["teacher"] or {}).get("parameters"),
        checkpoint_bytes=checkpoint_bytes,
    )


def _training_costs(
    records: list[Record], size: DryRunSize, num_validation: int, batch_size: int, devices: int
) -> list[PartCost]:
    """One for each training, without what surrounds it."""
    trainings = [record for record in records if record["stage"] == "train"]
    validations = [
        pass_seconds(record, num_validation, batch_size)
        for record in records
        if record["stage"] == "validate"
    ]
    costs = []
    for training, validation in zip(trainings, validations, strict=True):
        # A batch that does not fit into memory was divided further than the settings say.
        micro_batches = training["micro_batches"]
        timed = training["seconds"][size.warmup * micro_batches :]
        costs.append(
            PartCost(
                unit_seconds=mean(timed) * micro_batches,
                unit_flops=training["flops"] * micro_batches * devices,
                memory_mb=training["memory_mb"],
                validation_seconds=validation,
                save_seconds=training["save_seconds"],
            )
        )
    return costs


def _preparation_cost(
    run: Run, records: list[Record], seconds: float, artifacts: Path
) -> PartCost | None:
    """seconds: of the whole preparation."""
    transfer = run.make_transfer()
    folders = [file.parent for file in artifacts.glob(f"{transfer.prepares}/*/manifest.json")]
    passes = [record for record in records if record["stage"] == "predict"]
    if not folders:
        return None
    (folder,) = folders
    manifest = read_manifest(folder)
    units, content = manifest["made_from"][transfer.unit_count_key], manifest["content"]
    if not passes:  # it runs the teacher without a trainer
        return PartCost(seconds / units, 0.0, peak_memory_mb(), unit_bytes=_size(folder) / units)
    record = passes[0]
    bytes_per_token = content.get("bytes_per_token")
    if bytes_per_token is None:
        unit_bytes = _size(folder) / units
    else:
        unit_bytes = bytes_per_token * content["positions"]
    return PartCost(
        unit_seconds=_seconds_per_example(record),
        unit_flops=record["flops"] * len(record["seconds"]) / units,
        memory_mb=record["memory_mb"],
        unit_bytes=unit_bytes,
        other_seconds=seconds - sum(record["seconds"]),
        other_bytes=_size(folder) - unit_bytes * units,
    )


def pass_seconds(record: Record, num_examples: int, batch_size: int) -> float:
    """The seconds of a whole pass over a split of `num_examples`, of which the dry run read a few.

    batch_size: of the whole run, over all devices; the trainer may limit its number of batches.
    """
    limit: int | float = record["limit"]
    most = limit * batch_size if isinstance(limit, int) else limit * num_examples
    return _seconds_per_example(record) * min(num_examples, most)


def _seconds_per_example(record: Record) -> float:
    """Without the first batch, where there are more."""
    seconds, examples = (record[name][1:] or record[name] for name in ("seconds", "examples"))
    return float(sum(seconds) / max(1, sum(examples)))


def _measured_seconds(records: list[Record]) -> float:
    return sum(sum(record["seconds"]) + record.get("save_seconds", 0.0) for record in records)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
