"""Real commands in processes of their own, which can be hurt; and what must then hold.

A process is a copy of one that has imported everything already, so that it begins at once.
"""

import atexit
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lightning_distill.distributed import launcher, process_group
from lightning_distill.distributed.topology import Hardware
from lightning_distill.storage.artifacts import find_damage
from lightning_distill.sweeps.job import check_results

# Two workers on two cores; and models so small that a second thread only waits.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A copy has no GPU: where there is one, each process imports for itself.
CONTEXT = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
multiprocessing.set_forkserver_preload(
    ["lightning_distill.cli.app", "lightning_distill.pipeline", "lightning_distill.report"]
)

STEPS = 40
EVERY = 7
SETTINGS = [
    "student=xs",
    "teacher=xs",
    "student.hidden_size=16",
    "teacher.hidden_size=32",
    "teacher.num_hidden_layers=1",
    f"student.max_steps={STEPS}",
    f"teacher.max_steps={STEPS}",
    "data=text",
    "data.vocab_size=300",
    "data.sequence_length=32",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    f"checkpoint_every_n_steps={EVERY}",
    "logger=csv",
]
# Teacher, tokens, cached predictions, two students, their evaluations, and a report.
SWEEP = [
    "-m",
    *SETTINGS,
    "sweep.name=all",
    "transfer=cached",
    "transfer.stored=topk",
    "transfer.k=20",
    "loss.alpha=0.5,1",
]


def environment() -> dict[str, str]:
    """This process's, without the service that W&B has begun in it, which may be gone by then."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def write_documents(path: Path) -> None:
    """180 documents of sentences over a small vocabulary; the same in every session."""
    dice = random.Random(0)
    words = "a teacher student learns soft targets from temperature model small large"
    with path.open("w") as file:
        for _ in range(180):
            text = " ".join(dice.choice(words.split()) for _ in range(dice.randint(10, 60)))
            file.write(json.dumps({"text": text}) + "\n")


def run_command(
    argv: list[str], folder: str, said: list[str], env: dict[str, str], before: Any
) -> None:
    """Of a process that ends with it. said: files for what it prints, and for its errors."""
    for stream, name in enumerate(said, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["lightning-distill", *argv]
    if env.get("RANKS") != "spawn" and not torch.cuda.is_available():
        launcher.START_METHOD = "fork"  # ranks need not import everything again
    if before:
        before()
    from lightning_distill.cli.app import main

    try:
        main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:  # what a command does at its end, and multiprocessing's processes do not
        threading._shutdown()
        atexit._run_exitfuncs()


def as_ranks(world: int, work: Callable[..., None], *told: Any) -> None:
    """Calls work(*told) in so many processes, as torchrun would have started them."""
    port = launcher.free_port()
    begun = [CONTEXT.Process(target=_rank, args=(r, world, port, work, told)) for r in range(world)]
    for process in begun:
        process.start()
    for process in begun:
        process.join(120)
        assert process.exitcode == 0


def _rank(rank: int, world: int, port: int, work: Callable[..., None], told: Any) -> None:
    if world == 1:
        return work(*told)
    os.environ |= {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"},
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
        **{name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
    }
    process_group.init_process_group(Hardware("cpu"))
    work(*told)
    process_group.destroy_process_group()


@dataclass
class Command:
    """One that is running, or was. What it says goes to two files, which may be one."""

    argv: list[str]
    folder: Path
    out: Path
    err: Path
    env: dict[str, str]
    before: Callable[[], None] | None = None
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        self.out.touch()
        self.err.touch()
        said = [str(self.out), str(self.err)]
        told = self.argv, str(self.folder), said, self.env, self.before
        self.process = CONTEXT.Process(target=run_command, args=told)
        self.process.start()

    @property
    def said(self) -> str:
        return "".join(file.read_text() for file in dict.fromkeys((self.out, self.err)))

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def wait(self, expect: int | None = 0, timeout: float = 200) -> "Command":
        self.process.join(timeout)
        if self.alive:
            self.signal(signal.SIGABRT)
            raise AssertionError(f"still running after {timeout} s:\n{self.said}")
        assert expect is None or self.process.exitcode == expect, self.said
        return self

    def until(self, found: Callable[[], Any], timeout: float = 100) -> Any:
        """What the first call that finds something has found; None where the command ends first."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if value := found():
                return value
            if not self.alive:
                return found()
            time.sleep(0.003)
        raise AssertionError(f"nothing came in {timeout} s:\n{self.said}")

    def signal(self, number: int) -> None:
        """To the process and what it has started, as a terminal or a cluster's manager does."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # it has ended, or not begun to be a group
            if self.alive:
                os.kill(self.process.pid, number)


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    stats = (file for file in Path("/proc").glob("[0-9]*/stat"))
    told = [(int(file.parent.name), file.read_text().rpartition(")")[2].split()) for file in stats]
    return [number for number, fields in told if int(fields[1]) == pid]


@dataclass
class Place:
    """A folder in which commands run, with a text and an outputs folder."""

    folder: Path
    outputs: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.outputs = self.folder / "outputs"
        # In a folder of its own name in all places: the key of a job names the text.
        write_documents(self.folder / "text.jsonl")
        os.utime(self.folder / "text.jsonl", (0, 0))

    @property
    def sweep(self) -> Path:
        return self.outputs / "sweeps" / "all"

    def start(self, *argv: str, before: Callable[[], None] | None = None, **env: str) -> Command:
        number = len(list(self.folder.glob("*.said")))
        said = self.folder / f"{number}.said"
        told = list(argv or SWEEP)
        if not any(setting.startswith("data.path=") for setting in told):
            told.append("data.path=text.jsonl")
        env = {
            **environment(),
            "HYDRA_FULL_ERROR": "0",
            "WANDB_MODE": "offline",
            "NETRC": str(self.folder / "none"),
            **env,
        }
        return Command(told, self.folder, said, said, env, before)

    def run(self, *argv: str, expect: int = 0, **more: Any) -> str:
        return self.start(*argv, **more).wait(expect).said


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """By the folder of each job."""
    files = sorted(folder.rglob("results.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def numbers(folder: Path) -> dict[str, Any]:
    """What does not depend on how a sweep came to its end: scores, curves and weights."""
    found: dict[str, Any] = {}
    for name, job in results(folder).items():
        assert job["status"] == "finished", job
        found[name] = {key: job[key] for key in ("key", "seed", "teacher", "student", "training")}
        with (folder / name / "metrics.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        for curve in ("train/loss", "validation/nll"):
            found[name][curve] = [(row["step"], row[curve]) for row in rows if row.get(curve)]
        found[name]["weights"] = (folder / name / "student" / "model.safetensors").read_bytes()
    return found


def check_whole(outputs: Path) -> None:
    """Nothing that can be read under its own name is half-written."""
    for manifest in outputs.glob("artifacts/*/*/manifest.json"):
        if manifest.parent.suffix != ".partial":
            assert not find_damage(manifest.parent), manifest
    for file in outputs.rglob("results.json"):
        found = json.loads(file.read_text())
        check_results(found)
        if found["status"] == "finished":
            load_file(file.parent / "student" / "model.safetensors")
    for file in outputs.rglob("report.html"):
        assert file.read_text().rstrip().endswith("</html>"), file
    for file in outputs.rglob("results.csv"):
        widths = {len(row) for row in csv.reader(file.read_text().splitlines())}
        assert len(widths) == 1, file
