"""Batches that do not fit into memory."""

import json

import pytest
import torch
from conftest import curve, scores
from lightning.pytorch.callbacks import Callback

from lightning_distill.training.fit import is_out_of_memory


class SmallGPU(Callback):
    """Simulates a GPU that runs out of memory on batches above a size, from some step on."""

    def __init__(self, holds: int, since: int = 0) -> None:
        self.holds, self.since = holds, since

    def on_before_backward(self, trainer, module, loss):
        size = trainer.datamodule.batch_size
        student = type(module).__name__ == "StudentModule"
        if size > self.holds and (trainer.global_step >= self.since if student else not self.since):
            raise torch.OutOfMemoryError("CUDA out of memory")


EIGHT = [
    *("data.batch_size=8", "data.isolate_documents=true", "loss.temperature=2", "logger=csv"),
    *("trainer.log_every_n_steps=1", "checkpoint_every_n_steps=5", "student.max_steps=12"),
    "trainer.val_check_interval=4",
]


@pytest.fixture(scope="module")
def run(in_process, tmp_path_factory):
    def run(*settings, gpu=None, folder=None):
        folder = folder or tmp_path_factory.mktemp("run")
        where = [f"paths.outputs={folder}", f"hydra.run.dir={folder}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIGHTNING_DISTILL_ALLOW", __name__)
            node = f"{{_target_: {__name__}.SmallGPU, {gpu}}}"
            gpus = [f"+trainer.callbacks=[{node}]"] if gpu else []
            done = in_process(*EIGHT, *settings, *where, *gpus)
        return folder, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def whole(run):
    return run()[0]


@pytest.mark.parametrize(
    "gpu",
    [
        pytest.param("holds: 8", marks=pytest.mark.long),
        "holds: 3",
        "{holds: 4, since: 7}",
        pytest.param("holds: 1", marks=pytest.mark.long),
    ],
)
def test_batches_that_do_not_fit_are_divided_without_changing_the_run(run, whole, gpu):
    folder, output = run(gpu=gpu.strip("{}"))
    for name in ("step", "train/loss", "train/gradient_norm", "validation/nll"):
        assert curve(folder, name) == pytest.approx(curve(whole, name), rel=1e-5), name
    for role, known in scores(whole).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-5), role
    parts = {"holds: 8": 1, "holds: 3": 4, "{holds: 4, since: 7}": 2, "holds: 1": 8}[gpu]
    each = f"{parts} micro-batches of {8 // parts} make the same step"
    # The teacher's, then the student's.
    assert output.count(each) == (0 if parts == 1 else 1 if "since" in gpu else 2)


@pytest.mark.slow
def test_divided_batches_keep_the_same_best_weights_and_stop_at_the_same_step(run):
    """Divided after step 5, from the checkpoint of step 4, so that a validation is repeated."""
    select = ["student.keep=best", "student.stop_after=3", "schedule=constant", "optimizer.lr=0.3"]
    select += ["trainer.val_check_interval=1", "checkpoint_every_n_steps=2"]
    trainings = []
    for gpu in (None, "holds: 4, since: 5"):
        folder, output = run(*select, gpu=gpu)
        trainings.append(json.loads((folder / "results.json").read_text())["training"])
    assert "2 micro-batches of 4 make the same step" in output
    assert trainings[0] == trainings[1]
    assert 0 < trainings[0]["kept_step"] < trainings[0]["steps"] < 12


@pytest.mark.parametrize(
    ("settings", "gpu", "expected"),
    [
        ([], "holds: 0", "teacher: a batch of 1 does not fit into memory, at step 1. Set a"),
        (
            ["checkpoint_every_n_steps=50"],
            "holds: 4, since: 7",
            "student: a batch of 8 does not fit into memory, at step 8. Set a smaller",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_ends_the_run_with_advice(
    run, settings, gpu, expected, tmp_path
):
    with pytest.raises(torch.OutOfMemoryError):
        run(*settings, gpu=gpu, folder=tmp_path)
    (log,) = tmp_path.glob("*.log")
    assert expected in log.read_text()


def test_a_plan_counts_the_flops_of_all_micro_batches(run):
    def flops(**gpu):
        folder, _ = run("stage=plan", **gpu)
        return json.loads((folder / "plan.json").read_text())["flops"]

    assert flops(gpu="holds: 4") == pytest.approx(flops(), rel=0.01)


def test_running_out_of_memory_is_recognized_on_the_cpu():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
