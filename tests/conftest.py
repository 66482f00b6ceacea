import csv
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import Command, environment, write_documents
from hydra._internal.hydra import Hydra
from wandb_server import Server

from lightning_distill.cli import app
from lightning_distill.cli.hydra_callback import SweepCallback
from lightning_distill.data.sources.text import Text
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.storage.artifacts import Store
from lightning_distill.training.checkpoint_callback import CheckpointCallback

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


def pytest_sessionfinish():
    """A command that a failed test has left behind, stopped perhaps, would be waited for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises when a loader is killed
    for process in multiprocessing.active_children():
        process.kill()


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
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    write_documents(path)
    return path


@pytest.fixture(scope="session")
def lm_eval_tasks(tmp_path_factory) -> Path:
    """A folder of two tasks in lm-eval's YAML: which of three answers is likelier, `choice`, and
    how likely a text is, `text`; both over 24 questions with one to three words an answer."""
    folder, dice = tmp_path_factory.mktemp("tasks"), random.Random(1)
    words = ["a", "student", "learns", "soft", "targets", "from", "teacher", "small", "large"]
    data = folder / "questions.jsonl"
    with data.open("w") as file:
        for _ in range(24):
            answers = [" ".join(dice.choices(words, k=count)) for count in (1, 2, 3)]
            question = " ".join(dice.choices(words, k=5))
            row = {"question": question, "answers": answers, "right": dice.randrange(3)}
            file.write(json.dumps(row) + "\n")
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    }
    text = {
        "task": "text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    for task in (choice, text):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(source | task))
    return folder


@pytest.fixture
def make_data(text_file, tmp_path_factory):
    """A prepared CausalLM on that text."""

    def make(sequence_length=32, batch_size=4, isolate_documents=False) -> CausalLM:
        settings = {"isolate_documents": isolate_documents, "path": str(text_file)}
        data = CausalLM(Text, sequence_length, batch_size, 300, **settings)
        data.prepare(Store(tmp_path_factory.getbasetemp() / "outputs"), None)
        return data

    return make


@pytest.fixture(scope="session")
def command(text_file, tmp_path_factory):
    """Runs the command in a process of its own."""

    def run(*overrides: str, tiny: bool = True, expect: int = 0, **env: str):
        here, said = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("said")
        settings = [*TINY, f"data.path={text_file}"] if tiny else []
        flags = [o for o in overrides if o.startswith("-")]
        argv = [*flags, *settings, *(o for o in overrides if o not in flags)]
        env = {**environment(), "NETRC": str(here / "no-netrc"), **env}
        done = Command(argv, here, said / "out", said / "err", env).wait(expect, timeout=500)
        out, err = done.out.read_text(), done.err.read_text()
        return subprocess.CompletedProcess(argv, done.process.exitcode, out, err)

    return run


@pytest.fixture(scope="session")
def in_process(text_file, tmp_path_factory):
    """Runs the command like `command`, in this process, which has imported everything already."""

    def run(*overrides: str, tiny: bool = True, expect: int = 0) -> subprocess.CompletedProcess:
        out, err, code = io.StringIO(), io.StringIO(), 0
        others = ("=pretrained", "=served", "=convnet", "=gguf")
        sizeless = [o.split("=")[0] for o in overrides if o.endswith(others)]
        without = [f"{role}.hidden_size" for role in sizeless]
        own = [o for o in TINY if o.split("=")[0] not in without]
        own = [*own, "logger=none", f"data.path={text_file}"] if tiny else []
        flags = [o for o in overrides if o.startswith("-")]
        settings = [*flags, *own, *(o for o in overrides if o not in flags)]
        handlers = logging.getLogger().handlers
        before = list(handlers)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path_factory.mktemp("cwd"))
            patch.setenv("HYDRA_FULL_ERROR", "0")
            patch.setattr(SweepCallback, "running", None)  # a command has a process of its own
            patch.setattr(sys, "argv", ["lightning-distill", *settings])
            without_first_composition(patch, settings)
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


def without_first_composition(patch, settings):
    """Hydra composes a config twice, first for `hydra.mode`, which only some recipes set."""
    recipes = ("experiment=", "+experiment=", "sweep=", "+sweep=", "hydra.mode", "hydra/")
    if not any(one.startswith(recipes) for one in settings):
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)


def curve(folder, name):
    """What metrics.csv says of one number, in its order."""
    with (folder / "metrics.csv").open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def scores(folder):
    found = json.loads((folder / "results.json").read_text())
    return {role: found[role] for role in ("teacher", "student")}


@contextmanager
def without_its_end():
    """What is run leaves the checkpoints of one that was killed behind its last step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointCallback, "on_train_epoch_end", lambda *_: None)
        yield


TEACHER = {
    "parameters": 1000,
    "nll": 4.0,
    "perplexity": 54.6,
    "bits_per_byte": 2.0,
    "calibration_error": 0.01,
}


def write_job(
    folder, overrides, cfg, nll, seed=0, parameters=100, sample="fine", bits=None, **results
):
    """A job's folder, as the command would leave it; `results` replace what it would say."""
    (folder / ".hydra").mkdir(parents=True)
    base = {
        "seed": seed,
        "data": {"batch_size": 4},
        "student": {"hidden_size": 8, "max_steps": 10, "initialize": "random"},
        "transfer": {"num_blocks": None},
        "optimizer": {"lr": 0.1},
        "schedule": {},
        "trainer": {},
        "loss": {"alpha": 1.0, "temperature": 1.0, "hard_target": "labels"},
    }
    merged = {key: {**base.get(key, {}), **cfg[key]} for key in cfg}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(base | merged))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    known = {"status": "finished", "seed": seed, "key": folder.name, "overrides": overrides}
    if results.get("status", "finished") == "finished":
        speed = {"student_tokens_per_second": 8e3, "peak_memory_mb": 693.3}
        cost = {"teacher_seconds": 0.0, "transfer_seconds": 0.0, "student_seconds": 5.0} | speed
        scores = {"nll": nll, "bits_per_byte": bits or nll / 2, "perplexity": math.exp(nll)}
        student = TEACHER | {"parameters": parameters, "teacher_agreement": 0.5} | scores
        known |= {"teacher": TEACHER, "student": student, "cost": cost}
    (folder / "results.json").write_text(json.dumps(known | results))
    samples = [{"prompt": "Once", "student": sample, "teacher": "upon"}]
    (folder / "samples.json").write_text(json.dumps(samples))
    bins = [{"count": 10, "confidence": c, "accuracy": c - 0.1} for c in (0.2, 0.5, 0.9)]
    tokens = {"tokens": ["Once", " upon"], "kl": [0.1, 3.0]}
    favorites = {"student": [[" the", 0.5], [" a", 0.2]], "teacher": [[" upon", 0.9]]}
    largest = [{"before": "Once", "token": " upon", "kl": 3.0, **favorites}]
    differences = {"passages": [tokens], "largest": largest}
    predictions = {"reliability": {"student": bins, "teacher": bins}, "differences": differences}
    (folder / "predictions.json").write_text(json.dumps(predictions))
    points = ((9 + 10 * n, nll + math.exp(-n)) for n in range(12))
    lines = (
        f"0,{step},{value + 0.5},,{512 * (step + 1)},{step / 10}\n0,{step},,{value},,\n"
        for step, value in points
    )
    names = "epoch,step,train/loss,validation/nll,train/tokens,train/seconds\n"
    (folder / "metrics.csv").write_text(names + "".join(lines))
    (folder / "job.log").write_text("began\n")


@pytest.fixture
def job(tmp_path):
    """Writes a job of the sweep `tmp_path`."""

    def write(name, nll, seed=0, steps=10, start="random", transfer=None, more=(), **loss):
        results = {
            key: loss.pop(key)
            for key in ("status", "error", "same_as", "key", "training")
            if key in loss
        }
        if results.get("status") == "failed":
            results = {"error": "no <b>memory</b>", "user_error": False} | results
        sample, parameters = loss.pop("sample", "fine"), loss.pop("parameters", 100)
        bits = loss.pop("bits", None)
        cfg = {
            "student": {"max_steps": steps, "initialize": start},
            "transfer": transfer or {},
            "loss": loss,
        }
        overrides = [f"name={name}", f"seed={seed}", "common=1", *more]
        folder = tmp_path / f"{name.replace('/', '.')},seed={seed}"
        write_job(folder, overrides, cfg, nll, seed, parameters, sample, bits, **results)
        return folder

    return write


@pytest.fixture
def sweep_of_24(tmp_path):
    """Two sizes, two temperatures, alpha 0, 0.5 and 1, two seeds; where alpha is 0, the second
    temperature takes over the results of the first."""
    folder = tmp_path / "sizes"
    grid = itertools.product(("xs", "s"), (1, 2), (0, 0.5, 1), (0, 1))
    for size, temperature, alpha, seed in grid:
        overrides = [
            f"student={size}",
            f"loss.temperature={temperature}",
            f"loss.alpha={alpha}",
            f"seed={seed}",
        ]
        width = {"xs": 64, "s": 128}[size]
        nll = 5.2 - 0.3 * (size == "s") - 0.6 * alpha - 0.05 * temperature * alpha
        nll += random.Random(f"{size} {alpha * temperature} {seed}").gauss(0, 0.01)
        results = {"teacher": {**TEACHER, "parameters": 3_054_720}}
        if alpha == 0:
            results["key"] = f"plain {size} {seed}"
            if temperature == 2:
                results["same_as"] = "the other"
                results["cost"] = {"student_seconds": 0.0, "student_tokens_per_second": 8e3}
        write_job(
            folder / ",".join(sorted(overrides)),
            overrides,
            {
                "student": {"hidden_size": width},
                "loss": {"alpha": alpha, "temperature": temperature},
            },
            nll,
            seed,
            {"xs": 231_744, "s": 1_053_824}[size],
            f"a student of size {size} went on",
            **results,
        )
    sweeps = ["student=xs,s", "loss.temperature=1,2", "loss.alpha=0,0.5,1", "seed=0,1"]
    sweeper = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    hydra = {"overrides": {"task": sweeps}, "sweeper": {"_target_": sweeper, "params": None}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    return folder


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


NOT_RUN = "Skipped: documentation: "


def pytest_terminal_summary(terminalreporter):
    """How much of the documentation was run, and why not the rest."""
    stats = terminalreporter.stats
    ran = Counter(
        kind
        for report in stats.get("passed", [])
        if report.when == "call"
        for name, kind in report.user_properties
        if name == "documentation"
    )
    skipped = [r.longrepr[2] for r in stats.get("skipped", []) if isinstance(r.longrepr, tuple)]
    reasons = Counter(why.removeprefix(NOT_RUN) for why in skipped if why.startswith(NOT_RUN))
    if ran or reasons:
        why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(
            f"documentation: {ran['command']} commands and {ran['python']} Python blocks run, "
            f"{reasons.total()} not run ({why})"
        )
