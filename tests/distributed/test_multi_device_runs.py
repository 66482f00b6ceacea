"""One job on several devices: two processes here, over gloo."""

import atexit
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, curve, scores
from forked import Place
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from lightning_distill.constants import IGNORED
from lightning_distill.data.loaders import HeldOutShard, RankShare, TrainSampler
from lightning_distill.training.checkpoint_callback import requeue_slurm_job

TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
# Isolated documents mask some labels, so that ranks have unequal numbers of tokens.
SAME = [
    *("data.isolate_documents=true", "trainer.accumulate_grad_batches=2", "loss.temperature=2"),
    *("trainer.log_every_n_steps=1", "student.max_steps=12", "checkpoint_every_n_steps=5"),
]
LONG = ["student.max_steps=150", *(setting for setting in SAME if "max_steps" not in setting)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def one(in_process, outputs):
    """The run on one device."""
    in_process(
        "logger=csv", *SAME, f"paths.outputs={outputs / 'one'}", f"hydra.run.dir={outputs / 'one'}"
    )
    return outputs / "one"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_devices_give_the_run_of_one(command, outputs, one, trainer):
    folder = outputs / trainer
    said = command(
        *(*SAME, f"trainer={trainer}", *TWO, "transfer=online"),
        *(f"paths.outputs={folder}", f"hydra.run.dir={folder}"),
        RANKS="spawn" if trainer == "ddp" else "fork",  # as in use, and at once
    ).stdout
    assert said.count("training the teacher") == 1  # logged by rank 0 only
    for name in ("train/loss", "train/hard", "train/soft", "train/gradient_norm", "validation/nll"):
        assert curve(folder, name) == pytest.approx(curve(one, name), rel=1e-5), name
    for role, known in scores(one).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-5), role
    mine, theirs = (load_file(f / "student" / "model.safetensors") for f in (folder, one))
    assert mine.keys() == theirs.keys()
    for name, weights in theirs.items():
        torch.testing.assert_close(mine[name], weights, rtol=1e-4, atol=1e-5)
    assert len(list(folder.glob("artifacts/teacher/*/manifest.json"))) == 1


# Of 271 blocks, 12 steps of 8. The nll rises and falls at this learning rate.
SELECT = [
    *(setting for setting in SAME if "max_steps" not in setting),
    *("student.max_steps=null", "student.epochs=0.35", "schedule=constant", "optimizer.lr=0.3"),
    *("student.keep=best", "student.stop_after=3", "trainer.val_check_interval=2"),
]


@pytest.fixture(scope="module")
def selected(in_process, outputs, one):
    """Training of the run on one device."""
    folder = outputs / "selected"
    in_process(*SELECT, f"paths.outputs={one}", f"hydra.run.dir={folder}")
    return json.loads((folder / "results.json").read_text())["training"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_devices_keep_the_best_weights_and_stop_when_one_does(
    command, one, selected, trainer, tmp_path
):
    where = [f"paths.outputs={one}", f"hydra.run.dir={tmp_path}"]
    command(*SELECT, f"trainer={trainer}", *TWO, *where)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"] == selected
    assert 0 < selected["kept_step"] < selected["steps"] < selected["max_steps"] == 12
    kept = load_file(tmp_path / "student" / "model.safetensors")
    best, last = (
        torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("best", "last")
    )
    assert best["global_step"] == selected["kept_step"]
    for name, weights in kept.items():
        assert torch.equal(weights, best["state_dict"][f"model.{name}"])
    assert not all(torch.equal(x, last["state_dict"][f"model.{n}"]) for n, x in kept.items())
    # As if it had been killed while it was evaluated:
    (tmp_path / "results.json").write_text(json.dumps({**results, "status": "running"}))
    shutil.rmtree(tmp_path / "student")
    said = command(*SELECT, f"trainer={trainer}", *TWO, *where).stdout
    assert f"student: resuming from step {selected['steps']}" in said
    assert json.loads((tmp_path / "results.json").read_text())["student"] == results["student"]
    again = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(again[name], weights) for name, weights in kept.items())


@pytest.mark.slow
def test_a_cache_is_the_same_by_one_device_and_by_two(command, in_process, outputs, one):
    """Both with the teacher of the run on one device."""
    ahead = ["transfer=cached", "stage=transfer", *SAME, f"paths.outputs={one}"]
    command(*ahead, "trainer=ddp", *TWO)
    (folder,) = one.glob("artifacts/predictions/*")
    by_two = {file.name: file.read_bytes() for file in folder.glob("shard-*")}
    folder.rename(outputs / "by two")
    in_process(*ahead)
    (again,) = one.glob("artifacts/predictions/*")
    assert again.name == folder.name
    assert {file.name: file.read_bytes() for file in again.glob("shard-*")} == by_two


TRANSFERS = {
    "cached": [],
    "sequence": ["transfer.prompt_length=4", "transfer.batch_size=16"],
    "on_policy": ["transfer.prompt_length=4"],
}


def bytes_of(folder):
    """The files of the teacher's labels or texts."""
    files = (f for glob in ("shard-*", "text-*") for f in folder.glob(f"artifacts/*/*/{glob}"))
    return {file.relative_to(folder): file.read_bytes() for file in files}


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_every_transfer_gives_two_devices_the_run_of_one(
    command, in_process, text_file, outputs, one, transfer, trainer
):
    """With the same teacher and micro-batches, since dropout and sampling draw per micro-batch."""
    teacher = next(one.glob("artifacts/teacher/*/"))
    tiny = [setting for setting in TINY if not setting.startswith("teacher")]
    same = [
        *(*tiny, *SAME, f"transfer={transfer}", *TRANSFERS[transfer], f"data.path={text_file}"),
        *("teacher=pretrained", f"teacher.name={teacher}", "teacher.max_steps=0"),
    ]

    def run(way, name, *devices):
        folder = outputs / transfer / name
        where = [f"paths.outputs={folder}", f"hydra.run.dir={folder}"]
        way(*same, *devices, *where, tiny=False)
        return folder

    halves = ["data.batch_size=2", "trainer.accumulate_grad_batches=4"]
    alone = outputs / transfer / "alone"
    if not alone.exists():
        run(in_process, "alone", *halves)
    shared = run(command, trainer, f"trainer={trainer}", *TWO)
    for name in ("train/loss", "train/gradient_norm", "validation/nll"):
        assert curve(shared, name) == pytest.approx(curve(alone, name), rel=1e-5), name
    for role, known in scores(alone).items():
        assert scores(shared)[role] == pytest.approx(known, rel=1e-5), role
    assert bytes_of(shared) == bytes_of(alone)
    assert bool(bytes_of(alone)) == (transfer != "on_policy")


@pytest.fixture(scope="module")
def undisturbed(in_process, outputs, one):
    folder = outputs / "undisturbed"
    in_process(*LONG, f"paths.outputs={one}", f"hydra.run.dir={folder}")
    return folder


ALONE = ["trainer=cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(["trainer=fsdp", *TWO], ALONE, id="fsdp"),
    ],
)
def test_a_stopped_run_resumes_on_other_devices(
    text_file, outputs, one, undisturbed, command, before, after, tmp_path
):
    folder = tmp_path / "stopped"
    where = [f"paths.outputs={one}", f"hydra.run.dir={folder}", f"data.path={text_file}"]
    run = Place(tmp_path).start(*TINY, *LONG, *before, *where)
    assert run.until((folder / "checkpoints" / "last.ckpt").exists), run.said
    run.process.terminate()  # the command only, which forwards the signal
    assert "stopped by SIGTERM at step" in run.wait(128 + signal.SIGTERM).said
    said = command(*LONG, *after, *where).stdout
    assert "resuming from step" in said
    for role, known in scores(undisturbed).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-3), role


@pytest.mark.slow
def test_fsdp_skips_a_step_with_a_nonfinite_loss(command):
    said = command("trainer=fsdp", *TWO, "optimizer.lr=1e30", expect=2)
    assert "is skipped: loss" in said.stdout
    assert "Training diverged" in said.stderr


@pytest.mark.slow
def test_each_job_of_a_sweep_has_processes_of_its_own(command, tmp_path):
    sweep = ["-m", "trainer=ddp", *TWO, "loss.alpha=1,2", "sweep.name=all", "student.max_steps=4"]
    said = command(*sweep, f"paths.outputs={tmp_path}").stdout
    assert said.count("training the teacher") == 1
    with (tmp_path / "sweeps" / "all" / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert "finished before, skipped" in command(*sweep, f"paths.outputs={tmp_path}").stdout


class Aborts(Callback):
    """Rank 1 aborts when all work is done."""

    def teardown(self, trainer, module, stage):
        if trainer.global_rank:
            atexit.register(os.abort)


@pytest.mark.slow
def test_a_rank_that_aborts_after_its_work_costs_no_result(command, tmp_path):
    aborts = "+trainer.callbacks=[{_target_: test_multi_device_runs.Aborts}]"
    allow = {"LIGHTNING_DISTILL_ALLOW": "test_multi_device_runs"}
    few = ["student.max_steps=2", "teacher.max_steps=2", f"hydra.run.dir={tmp_path}"]
    said = command("trainer=ddp", *TWO, *few, aborts, **allow, RANKS="spawn").stdout
    assert "rank 1 of 2 returned, then ended with exit code -6" in said
    assert scores(tmp_path)["student"]["nll"] > 0


@pytest.mark.slow
def test_a_mistake_found_by_several_ranks_is_reported_once(command):
    said = command("trainer=ddp", *TWO, "data.path=nowhere.jsonl", expect=2)
    lines = [line for line in said.stderr.splitlines() if "nowhere" in line]
    assert len(lines) == 1
    assert lines[0].startswith("lightning-distill: ")


# What is registered first is called last.
COMMAND = """
import atexit, os, pathlib
import torch.distributed as dist
from lightning_distill.cli.app import main
note = pathlib.Path(f"rank-{os.environ['RANK']}")
atexit.register(lambda: note.write_text(str(dist.is_initialized())))
main()
"""


@pytest.mark.slow
def test_torchrun_starts_the_same_run(text_file, outputs, one, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "command.py").write_text(COMMAND)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("command.py", *TINY, *SAME, "trainer=ddp", *TWO),
            *(f"data.path={text_file}", f"paths.outputs={tmp_path}", f"hydra.run.dir={folder}"),
        ],
        check=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert not (tmp_path / "outputs").exists()  # from rank 1
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["False", "False"]
    for role, known in scores(one).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-5), role


SRUN = """
import os, subprocess, sys
command = sys.argv[2:]
ranks = []
for rank in range(2):
    told = {"PROCID": rank, "NTASKS": 2, "LOCALID": 0, "NODEID": rank, "STEP_ID": 0,
            "JOB_NODELIST": "localhost", "NODELIST": "localhost"}
    env = {**os.environ, **{f"SLURM_{key}": str(value) for key, value in told.items()}}
    ranks.append(subprocess.Popen(command, env=env))
sys.exit(max([rank.wait() for rank in ranks]))
"""


@pytest.mark.long
def test_the_script_for_several_machines_runs_under_srun(text_file, outputs, one, tmp_path):
    """With a stand-in of srun that starts both machines' tasks on this one."""
    for name, content in (
        ("srun", f"#!{sys.executable}\n{SRUN}"),
        ("lightning-distill", f'#!/bin/sh\nexec {sys.executable} -m lightning_distill "$@"\n'),
    ):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[2] / "scripts" / "multi_node.sh"
    slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7"}
    subprocess.run(
        [
            *("bash", script, *TINY, *SAME, "trainer=ddp", "trainer.accelerator=cpu"),
            *("data.batch_size=2", f"data.path={text_file}"),
        ],
        check=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **slurm}
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    for role, known in scores(one).items():
        found = scores(tmp_path / "outputs" / "runs" / "slurm-7")[role]
        assert found == pytest.approx(known, rel=1e-5), role


@pytest.mark.parametrize("array", [False, True])
def test_a_job_of_slurm_is_queued_again(tmp_path, monkeypatch, array):
    told = tmp_path / "told"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    requeue_slurm_job()
    assert not told.exists()  # no job of Slurm's
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue_slurm_job()
    assert told.read_text().split() == ["requeue", "10_3" if array else "12"]


@pytest.mark.slow
def test_the_doctor_counts_the_devices(in_process, tmp_path):
    look = ["stage=doctor", f"paths.outputs={tmp_path}"]
    assert "2 × cpu" in in_process("trainer=ddp", *TWO, *look).stdout
    said = in_process("trainer=fsdp", "trainer.accelerator=cpu", *look, expect=2).stdout
    assert "WRONG device     trainer=fsdp splits models among" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.hidden.weight=1"], "which trainer=fsdp does not shard. Set trainer=ddp."),
        (["student.lora.rank=2", "student.initialize=teacher_layers"], "trains whole models"),
        (["trainer.devices=3", "trainer.num_nodes=2"], "needs this command started on every"),
    ],
)
def test_what_fsdp_or_several_machines_cannot_do_is_refused(command, overrides, message):
    said = command("trainer=fsdp", *TWO, *overrides, expect=2).stderr
    assert message in said


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_examples_of_a_step_are_the_same_on_any_number_of_devices(world):
    """Of 16 a step; the order of all, 5 steps of it, begins at the third."""
    alone = list(TrainSampler(23, 16 * 5, seed=3, start=32, share=RankShare(0, 1, 16)))
    size = 16 // world
    each = [
        list(TrainSampler(23, 16 * 5, 3, 32, RankShare(rank, world, size))) for rank in range(world)
    ]
    for step in range(3):
        mine = [i for own in each for i in own[step * size : (step + 1) * size]]
        assert sorted(mine) == sorted(alone[step * 16 : (step + 1) * 16])


def test_held_out_examples_count_once_and_ranks_have_as_many():
    examples = [{"labels": torch.tensor([n]), "x": torch.tensor(n)} for n in range(7)]
    parts = [HeldOutShard(examples, rank, 3) for rank in range(3)]
    assert {len(part) for part in parts} == {3}
    labels = [int(part[i]["labels"]) for part in parts for i in range(3)]
    assert sorted(label for label in labels if label != IGNORED) == list(range(7))
