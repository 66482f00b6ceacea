"""Every command and block of Python in README.md and docs/ runs, or says why not.

The steps of a page run in their order, in one folder, as if typed into one terminal. That folder
has what the page takes as given (reader.py), and commands that train are shortened (shortened.py).
"""

import re
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from completions_server import Server
from pages import PAGES, ROOT, Block, Command, in_order
from reader import llama, write_clone, write_files, write_models, write_packages
from shortened import INSPECTS, shorten
from terminal import Service, run_in_bash
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, LlamaForCausalLM

import lightning_distill as ld
from lightning_distill.data.tokenizer import train_tokenizer

STEPS = {page.relative_to(ROOT): in_order(page) for page in PAGES}
# Other commands take no time, but may need what these leave behind.
PROGRAMS = {"lightning-distill", "make", "pip", "python"}
# In force for what follows on the page.
SETUP = re.compile(r"(?:cd|export) ")
# Runs that a page takes as given, each with the jobs of it that are made.
RUNS = {
    "demo": "distilled,baseline",
    "chat": "distilled,baseline",
    "smollm2_quick": "hybrid,untrained",
}


def parameters(kind):
    """The steps of one kind, each with its marks."""
    for page, steps in STEPS.items():
        slow_before = False
        for step in steps:
            if not isinstance(step, kind):
                continue
            words = step.text.split() if kind is Command else []
            looks = any(flag in words for flag in INSPECTS)
            quick = looks or not (slow_before or PROGRAMS & set(words))
            slow_before |= not quick
            marks = [pytest.mark.slow if quick else pytest.mark.long]
            marks.append(pytest.mark.xdist_group(str(page)))
            if step.not_run:
                marks.append(pytest.mark.skip(reason=f"documentation: {step.not_run}"))
            yield pytest.param(step, id=str(step), marks=marks)


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    """A folder with what readers have, and finished runs where a page asks for them."""
    folder = tmp_path_factory.mktemp("given")
    write_clone(folder)
    write_files(folder)
    write_models(folder)
    write_packages(folder)
    return folder


@pytest.fixture(scope="session")
def service(given):
    service = Service(given / "model.gguf")
    yield service
    service.shutdown()
    service.server_close()
    shutil.rmtree(service.bin.parent)


@pytest.fixture(scope="session")
def finished(given, service):
    """The folder of an experiment of RUNS, which is run once."""

    def run(name: str) -> Path:
        if not (given / "outputs" / name).exists():
            line = f"lightning-distill experiment={name} experiment/job={RUNS[name]}"
            done = run_in_bash([line], given, service.bin)
            assert done.returncode == 0, done.stdout
        return given / "outputs" / name

    return run


@pytest.fixture(scope="session")
def folder_of(given, service, finished, tmp_path_factory):
    """The folder of a page."""
    folders: dict[str, Path] = {}

    def make(page: str) -> Path:
        if page not in folders:
            folder = folders[page] = tmp_path_factory.mktemp("page") / "here"
            shutil.copytree(given, folder, ignore=shutil.ignore_patterns("outputs"))
            venv = folder / ".venv"
            venv.mkdir()
            (venv / "bin").symlink_to(service.bin)
            for extra in re.findall(r"\.installed[\w-]*", (ROOT / "Makefile").read_text()):
                (venv / extra).touch()
            finished("demo")
            for kind in ("tokenizer", "tokens"):
                there = folder / "outputs" / "artifacts" / kind
                shutil.copytree(given / "outputs" / "artifacts" / kind, there)
        return folders[page]

    return make


@pytest.fixture(scope="session")
def served(given):
    """The address of a server that completes prompts with the model `big`."""
    model = LlamaForCausalLM.from_pretrained(given / "big").eval()
    server = Server(model, AutoTokenizer.from_pretrained(given / "big"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


def give_runs(text: str, folder: Path, finished) -> None:
    """What the text names: finished runs, `RUN` for one of them, and a teacher by its key."""
    for name in RUNS:
        there = folder / "outputs" / name
        if f"outputs/{name}" in text and not there.exists():
            shutil.copytree(finished(name), there)
            artifacts = finished(name).parent / "artifacts"
            shutil.copytree(artifacts, folder / "outputs" / "artifacts", dirs_exist_ok=True)
    for job in re.finditer(r"outputs/\w+/(job=\w+)", text):
        there = folder / job[0]  # of a shortened job, the folder names what shortens it too
        if not there.exists():
            (made,) = (one for one in there.parent.iterdir() if job[1] in one.name.split(","))
            there.symlink_to(made.name)
    if re.search(r"\bRUN\b", text) and not (folder / "RUN").exists():
        give_runs("outputs/demo", folder, finished)
        done = sorted((folder / "outputs").glob("*/*/student"))
        (folder / "RUN").symlink_to(done[0].parent)


@pytest.mark.parametrize("command", parameters(Command))
def test_a_command_runs(command, folder_of, finished, service, request, record_property):
    record_property("documentation", "command")
    folder = folder_of(command.page)
    give_runs(command.text, folder, finished)
    text = command.text
    if key := re.search(r"outputs/artifacts/teacher/([0-9a-f]{16})", text):
        made = (folder / "outputs" / "artifacts" / "teacher").glob("*/manifest.json")
        newest = max(made, key=lambda file: file.stat().st_mtime)
        text = text.replace(key[1], newest.parent.name)
    if url := re.search(r"http://\w+:8000/v1", text):
        text = text.replace(url[0], request.getfixturevalue("served"))
    before = [
        step.text
        for step in STEPS[Path(command.page)]
        if isinstance(step, Command) and step.line < command.line and not step.not_run
        if SETUP.match(step.text)
    ]
    done = run_in_bash([*before, text], folder, service.bin)
    assert done.returncode == 0 or ends_as_shown(command, done.stdout), f"{text}\n{done.stdout}"


def ends_as_shown(command: Command, printed: str) -> bool:
    """Whether the page shows this refusal, or these findings of the doctor.

    The doctor rightly finds that teachers of a few steps know nothing.
    """
    steps = [step for step in STEPS[Path(command.page)] if isinstance(step, Command)]
    shown = "\n".join(step.shown for step in steps if step.text == command.text).strip()
    if failed := re.search(r"checks failed: ([\w, ]+)\.", printed):
        return set(failed[1].split(", ")) <= {"teacher", *re.findall(r"WRONG (\w+)", shown)}
    return bool(shown) and shown in printed


@pytest.fixture(scope="session")
def names_of():
    """What the Python of a page can name: first what it takes as given, then what it has made."""
    names: dict[str, dict[str, object]] = {}
    tokenizer = train_tokenizer(["a small student of a large teacher"], 270)

    def make(page: str) -> dict[str, object]:
        if page not in names:
            student, teacher = llama(tokenizer, 1), llama(tokenizer, 2)
            ids = torch.randint(len(tokenizer), (2, 16))
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            names[page] = {
                "__name__": "documentation",
                "student": student,
                "teacher": teacher,
                "student_logits": student(ids).logits,
                "teacher_logits": teacher(ids).logits.detach(),
                "labels": ids,
                "datamodule": DataLoader([batch], batch_size=None),
            }
        return names[page]

    return make


@pytest.mark.parametrize("block", parameters(Block))
def test_python_runs(block, folder_of, finished, names_of, monkeypatch, record_property):
    record_property("documentation", "python")
    folder = folder_of(block.page)
    give_runs(block.code, folder, finished)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name in ("run", "sweep"):
        call = getattr(ld, name)
        monkeypatch.setattr(ld, name, lambda overrides, call=call: call(shorten(overrides)))
    names = names_of(block.page)
    exec(compile(block.code, str(block), "exec"), names)
    if isinstance(results := names.get("results"), ld.Results):
        assert results.status == "finished"
