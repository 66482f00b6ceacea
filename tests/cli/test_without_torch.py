"""What the config and the file system tell is refused before torch is imported."""

import json
import shlex
import subprocess
import sys

import pytest

from lightning_distill.config.input_files import COMPRESSIONS, FORMATS
from lightning_distill.data.sources.opening import OPENERS
from lightning_distill.data.sources.readers import READERS

SLOW = ("torch", "transformers", "lightning", "datasets", "wandb")
REFUSED = {
    "data=text data.path=/nowhere": "data.path=/nowhere does not exist.",
    "data=text data.path=[here.txt,nowhere.txt]": "data.path=nowhere.txt does not exist.",
    "data=text 'data.path=no*.jsonl.gz'": "data.path=no*.jsonl.gz does not exist.",
    "data=text data.path=here.txt data.test_path=nowhere.csv": (
        "data.test_path=nowhere.csv does not exist."
    ),
    "data=text data.mixture={a:{path:here.txt},b:{path:nowhere.txt}}": (
        "data.mixture.b.path=nowhere.txt does not exist."
    ),
    "stage=plan data=chat data.path=nowhere.jsonl": "data.path=nowhere.jsonl does not exist.",
    "data=text": "data.path is not set; give data.path=<value>.",
    "data=huggingface data.name=./nowhere": "data.name=./nowhere does not exist.",
    "teacher=pretrained": (
        "teacher=pretrained needs teacher.name=<a local folder or a name on the hub>."
    ),
    "student=pretrained student.name=./nowhere": (
        "student.name=./nowhere: there is no such folder."
    ),
    "transfer=cached transfer.cache=nowhere": (
        "transfer.cache=nowhere is not the folder of a finished cache."
    ),
    "evaluate.task_path=nowhere": "evaluate.task_path=nowhere: there is no such folder.",
    "loss.alpha=-1": "loss.alpha=-1 must be a number from 0.",
    "loss.temperature=0": "loss.temperature=0 must be a number above 0.",
    "loss.hard_target=teacher loss.label_smoothing=0.1": (
        "loss.label_smoothing is of labels; set it to 0 with loss.hard_target=teacher."
    ),
    "student.max_step=3": "There is no setting student.max_step. Did you mean student.max_steps?",
    "stage=chat": "stage=chat needs chat.run=<the folder of a finished run>.",
    "stage=export export.run=nowhere": (
        "export.run=nowhere is not the folder of a run: no .hydra/config.yaml."
    ),
    "stage=evaluate evaluate.run=nowhere": (
        "evaluate.run=nowhere is not the folder of a run: no .hydra/config.yaml."
    ),
    "stage=report report.sweep=nowhere": "report.sweep=nowhere is not a folder.",
}


# In a process that has imported nothing: answers each command, unless it imports what is slow.
ANSWER = """
import contextlib, io, json, os, sys

SLOW = json.loads(sys.argv[1])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in SLOW:
            sys.exit(f"imports {name}")

sys.meta_path.insert(0, Refuse())
from lightning_distill.cli import app

for arguments in json.load(sys.stdin):
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["lightning-distill", *arguments], "0"
    code, error = 0, io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            app.main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, error.getvalue()]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    (folder / "here.txt").write_text("a text\n")
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, json.dumps(SLOW)],
        input=json.dumps([[*shlex.split(command), "logger=none"] for command in REFUSED]),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(REFUSED, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", REFUSED)
def test_a_mistake_is_refused_without_torch(answers, command):
    assert answers[command] == [2, f"lightning-distill: {REFUSED[command]}\n"]


def test_the_names_of_formats_are_those_that_are_read():
    assert set(FORMATS) == set(READERS)
    assert set(COMPRESSIONS) == set(OPENERS)
