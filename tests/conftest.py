import io
import json
import logging
import os
import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from wandb_server import Server

from lightning_distill import app
from lightning_distill.artifacts import Store
from lightning_distill.data import DataModule
from lightning_distill.data.text import Text

# Two models of a few thousand weights, on a few kilobytes of text.
TINY = [
    "student=xs",
    "teacher=xs",
    "student.hidden_size=16",
    "teacher.hidden_size=32",
    "student.max_steps=12",
    "teacher.max_steps=20",
    "data=text",
    "data.vocab_size=300",
    "data.sequence_length=32",
    "trainer=cpu",
    "trainer.log_every_n_steps=4",
    "logger=csv",
]

# Two workers on two cores; and models so small that a second thread only waits.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def no_tracking_account(monkeypatch, tmp_path):
    """Whatever the machine is logged in to, tests are not; and an error in one stays in it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """180 documents of sentences over a small vocabulary; the same in every session."""
    dice = random.Random(0)
    words = "a teacher student learns soft targets from temperature model small large"
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    with path.open("w") as file:
        for _ in range(180):
            text = " ".join(dice.choice(words.split()) for _ in range(dice.randint(10, 60)))
            file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture
def make_data(text_file, tmp_path_factory):
    """A prepared DataModule on that text."""

    def make(sequence_length=32, batch_size=4, isolate_documents=False) -> DataModule:
        data = DataModule(
            Text, sequence_length, batch_size, 300, isolate_documents, path=str(text_file)
        )
        data.prepare(Store(tmp_path_factory.getbasetemp() / "outputs"), None)
        return data

    return make


@pytest.fixture(scope="session")
def command(text_file, tmp_path_factory):
    """Runs the real command in a process of its own."""

    def run(*overrides: str, tiny: bool = True, expect: int = 0, **env: str):
        here = tmp_path_factory.mktemp("cwd")
        settings = [*TINY, f"data.path={text_file}"] if tiny else []
        flags = [o for o in overrides if o.startswith("-")]
        overrides = tuple(o for o in overrides if not o.startswith("-"))
        done = subprocess.run(
            [sys.executable, "-m", "lightning_distill", *flags, *settings, *overrides],
            cwd=here,
            env={**os.environ, "NETRC": str(here / "no-netrc"), **env},
            capture_output=True,
            text=True,
            timeout=500,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def in_process(text_file, tmp_path_factory):
    """Runs the command like `command`, in this process, which has imported everything already."""

    def run(*overrides: str, expect: int = 0) -> subprocess.CompletedProcess:
        out, err, code = io.StringIO(), io.StringIO(), 0
        sizeless = [o.split("=")[0] for o in overrides if o.endswith(("=pretrained", "=served"))]
        without = [f"{role}.hidden_size" for role in sizeless]
        own = [o for o in TINY if o.split("=")[0] not in without]
        settings = [*own, "logger=none", f"data.path={text_file}", *overrides]
        handlers = logging.getLogger().handlers
        before = list(handlers)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path_factory.mktemp("cwd"))
            patch.setenv("HYDRA_FULL_ERROR", "0")
            patch.setattr(sys, "argv", ["lightning-distill", *settings])
            try:
                app.main()
            except SystemExit as stop:
                code = stop.code
            finally:
                handlers[:] = before  # Hydra's hold this run's output
        done = subprocess.CompletedProcess(settings, code, out.getvalue(), err.getvalue())
        assert code == expect, done.stdout + done.stderr
        return done

    return run


@dataclass
class Tracked:
    """A run as W&B's offline file has it."""

    run: Any  # name, group, tags, job type, id
    config: dict
    history: dict  # key: all values
    summary: dict


@pytest.fixture(scope="session")
def tracked():
    """Reads every offline run below a folder, in the order of their start."""
    from wandb.proto.wandb_internal_pb2 import Record

    def name(item):
        return item.key or "/".join(item.nested_key)

    def read(folder) -> list[Tracked]:
        found = []
        for file in sorted(folder.rglob("offline-run-*/*.wandb")):
            one = Tracked(None, {}, {}, {})
            for data in _wandb_records(file.read_bytes()):
                record = Record()
                record.ParseFromString(data)
                for item in record.history.item:
                    one.history.setdefault(name(item), []).append(json.loads(item.value_json))
                for item in record.summary.update:
                    one.summary[name(item)] = json.loads(item.value_json)
                if record.HasField("run"):
                    one.run = record.run
                    for item in record.run.config.update:
                        one.config[name(item)] = json.loads(item.value_json)
            found.append(one)
        return found

    return read


@pytest.fixture
def wandb_server():
    """W&B's server on this machine, and the environment that sends a command to it."""
    server = Server()
    yield server, {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
    server.shutdown()
    server.server_close()


def _wandb_records(data):
    """The records of W&B's file: LevelDB's log format, after a header of 7 bytes."""
    at, part = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        kind = data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield part
            part = b""
