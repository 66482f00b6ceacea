"""One job on several devices: two processes here, over gloo."""

import atexit
import csv
import json
import os
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
from lightning_distill.data.loaders import Order, Part, Share
from lightning_distill.distributed.topology import Hardware
from lightning_distill.training.checkpoint_callback import queue_again

TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
# Documents kept apart leave some labels out, and so ranks with unequal numbers of tokens.
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
    ).stdout
    assert said.count("training the teacher") == 1  # by one voice
    for name in ("train/loss", "train/hard", "train/soft", "train/gradient_norm", "validation/nll"):
        assert curve(folder, name) == pytest.approx(curve(one, name), rel=1e-5), name
    for role, known in scores(one).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-5), role
    mine, theirs = (load_file(f / "student" / "model.safetensors") for f in (folder, one))
    assert mine.keys() == theirs.keys()
    for name, weights in theirs.items():
        torch.testing.assert_close(mine[name], weights, rtol=1e-4, atol=1e-5)
    assert len(list(folder.glob("artifacts/teacher/*/manifest.json"))) == 1


@pytest.mark.slow
def test_what_a_cache_holds_does_not_depend_on_who_wrote_it(command, in_process, outputs, one):
    """The teacher of the run on one device labels for two."""
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
    """What the teacher labelled or wrote."""
    files = (f for glob in ("shard-*", "text-*") for f in folder.glob(f"artifacts/*/*/{glob}"))
    return {file.relative_to(folder): file.read_bytes() for file in files}


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_every_transfer_gives_two_devices_the_run_of_one(
    command, in_process, text_file, outputs, one, transfer, trainer
):
    """With one teacher, and the same micro-batches, by which a student's dice fall."""
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
def test_a_run_that_was_stopped_goes_on_on_other_devices(
    text_file, outputs, one, undisturbed, command, before, after, tmp_path
):
    folder = tmp_path / "stopped"
    where = [f"paths.outputs={one}", f"hydra.run.dir={folder}", f"data.path={text_file}"]
    run = Place(tmp_path).start(*TINY, *LONG, *before, *where)
    assert run.until((folder / "checkpoints" / "last.ckpt").exists), run.said
    run.process.terminate()  # the command alone, which hands it on
    assert "stopped by SIGTERM at step" in run.wait(128 + signal.SIGTERM).said
    said = command(*LONG, *after, *where).stdout
    assert "going on from step" in said
    for role, known in scores(undisturbed).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-3), role


@pytest.mark.slow
def test_a_step_that_is_no_number_is_left_out_of_shards_too(command):
    said = command("trainer=fsdp", *TWO, "optimizer.lr=1e30", expect=2)
    assert "is left out: its loss is" in said.stdout
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
    """Has rank 1 end badly when all is done."""

    def teardown(self, trainer, module, stage):
        if trainer.global_rank:
            atexit.register(os.abort)


@pytest.mark.slow
def test_a_rank_that_ends_badly_behind_its_work_costs_no_result(command, tmp_path):
    aborts = "+trainer.callbacks=[{_target_: test_ranks.Aborts}]"
    allow = {"LIGHTNING_DISTILL_ALLOW": "test_ranks"}
    few = ["student.max_steps=2", "teacher.max_steps=2", f"hydra.run.dir={tmp_path}"]
    said = command("trainer=ddp", *TWO, *few, aborts, **allow).stdout
    assert "rank 1 of 2 returned, then ended with exit code -6" in said
    assert scores(tmp_path)["student"]["nll"] > 0


@pytest.mark.slow
def test_what_a_rank_refuses_is_said_once(command):
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
    assert not (tmp_path / "outputs").exists()  # from the rank that leads no run
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["False", "False"]
    for role, known in scores(one).items():
        assert scores(folder)[role] == pytest.approx(known, rel=1e-5), role


# Two ranks for each way to end, forked from a process that imports torch once. Prints the exit code
# of each, and whether it was still among the ranks.
ENDS = """
import atexit, json, os, signal, sys, time
import torch, torch.distributed as dist
from lightning_distill.distributed import launcher, process_group
from lightning_distill.distributed.topology import Hardware

process_group.PATIENCE = 1.0

def at_the_end(rank):
    process_group.destroy_process_group()

def refused(rank):
    process_group.barrier()
    sys.exit(2)

def one_refused(rank):
    sys.exit(2) if rank else process_group.barrier()

def one_killed(rank):
    os.kill(os.getpid(), signal.SIGKILL) if rank else process_group.barrier()

def one_hangs(rank):
    if rank:
        time.sleep(90)
    dist.all_reduce(torch.ones(9), async_op=True)
    raise RuntimeError("while the other is waited for")

def play(way, rank, port, told):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }
    atexit.register(lambda: os.write(told, b"in" if dist.is_initialized() else b"left"))
    process_group.init_process_group(Hardware("cpu"))
    way(rank)
    sys.exit()

started, found = {}, {}
for way in (one_hangs, at_the_end, refused, one_refused, one_killed):
    port = launcher.free_port()
    for rank in range(2):
        hears, told = os.pipe()
        if not (pid := os.fork()):
            play(way, rank, port, told)
        os.close(told)
        started[pid] = way, rank, hears
while started:
    if len(started) == 1:
        os.kill(*started, signal.SIGKILL)
    pid, status = os.wait()
    way, rank, hears = started.pop(pid)
    said = os.waitstatus_to_exitcode(status), os.read(hears, 9).decode()
    found.setdefault(way.__name__, {})[rank] = said
print(json.dumps(found, sort_keys=True))
"""


@pytest.mark.slow
def test_ranks_leave_on_every_way_out_and_wait_for_none_that_is_gone():
    """Where one hangs with something begun, the other is ended after a while."""
    run = [sys.executable, "-c", ENDS]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    gone = [-signal.SIGKILL, ""]
    assert {way: [*both.values()] for way, both in json.loads(done.stdout).items()} == {
        "at_the_end": [[0, "left"], [0, "left"]],
        "refused": [[2, "left"], [2, "left"]],
        "one_refused": [[1, "left"], [2, "left"]],
        "one_killed": [[1, "left"], gone],
        "one_hangs": [[1, ""], gone],
    }


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


@pytest.mark.slow
def test_the_script_for_several_machines_runs_under_srun(text_file, outputs, one, tmp_path):
    """With a stand-in of srun that starts both machines' tasks on this one."""
    for name, content in (
        ("srun", f"#!{sys.executable}\n{SRUN}"),
        ("lightning-distill", f'#!/bin/sh\nexec {sys.executable} -m lightning_distill "$@"\n'),
    ):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[1] / "scripts" / "multi_node.sh"
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
    queue_again()
    assert not told.exists()  # no job of Slurm's
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    queue_again()
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
        (["loss.hidden.weight=1"], "which trainer=fsdp does not share. Set trainer=ddp."),
        (["student.lora.rank=2", "student.initialize=teacher_layers"], "trains whole models"),
        (["trainer.devices=3", "trainer.num_nodes=2"], "needs this command started on every"),
    ],
)
def test_what_shards_or_machines_cannot_do_is_refused(command, overrides, message):
    said = command("trainer=fsdp", *TWO, *overrides, expect=2).stderr
    assert message in said


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_examples_of_a_step_are_the_same_on_any_number_of_devices(world):
    """Of 16 a step; the order of all, 5 steps of it, begins at the third."""
    alone = list(Order(23, 16 * 5, seed=3, start=32, share=Share(0, 1, 16)))
    size = 16 // world
    each = [list(Order(23, 16 * 5, 3, 32, Share(rank, world, size))) for rank in range(world)]
    for step in range(3):
        mine = [i for own in each for i in own[step * size : (step + 1) * size]]
        assert sorted(mine) == sorted(alone[step * 16 : (step + 1) * 16])


def test_held_out_examples_count_once_and_ranks_have_as_many():
    examples = [{"labels": torch.tensor([n]), "x": torch.tensor(n)} for n in range(7)]
    parts = [Part(examples, rank, 3) for rank in range(3)]
    assert {len(part) for part in parts} == {3}
    labels = [int(part[i]["labels"]) for part in parts for i in range(3)]
    assert sorted(label for label in labels if label != IGNORED) == list(range(7))


def hardware(device=None, **trainer):
    node = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, **trainer}
    return Hardware.from_settings({"trainer": node, "teacher": {"device": device}})


@pytest.mark.parametrize(
    ("trainer", "gpus", "expected"),
    [
        ({"devices": 0}, "", "trainer.devices=0 must be a number"),
        ({"devices": "many"}, "", "trainer.devices=many must be a number"),
        ({"accelerator": "gpu"}, "", "there is no GPU; set trainer=cpu"),
        ({"accelerator": "gpu", "devices": 3}, "0,1", "there are 2 GPUs; set trainer.devices=2"),
        ({"accelerator": "auto", "devices": [0, 2]}, "0,1", "set trainer.devices=2 or fewer"),
        (
            {"strategy": {"_target_": "lightning_distill.distributed.fsdp.FSDP2Strategy"}},
            "",
            "trainer=fsdp splits models among several devices, and has one",
        ),
        ({"accelerator": "gpu", "precision": "bf16-mixed"}, "0", "does not compute in bf16"),
        ({"device": "cuda:1"}, "0", "teacher.device=cuda:1 does not exist"),
        ({"device": "abacus"}, "0", "teacher.device=abacus does not exist"),
    ],
)
def test_hardware_that_is_not_there_is_named(trainer, gpus, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert expected in hardware(**trainer).problem()


@pytest.mark.parametrize(
    ("trainer", "gpus", "count"),
    [
        ({}, "", 1),
        ({"devices": 2, "num_nodes": 3}, "", 6),
        ({"devices": "auto"}, "0,1", 1),  # a processor
        ({"devices": "auto", "accelerator": "auto"}, "0,1", 2),
        ({"devices": -1, "accelerator": "gpu"}, "0,1", 2),
        ({"devices": [1, 3], "accelerator": "gpu"}, "0,1,2,3", 2),
    ],
)
def test_a_process_for_each_device(trainer, gpus, count, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert hardware(**trainer).num_devices == count
