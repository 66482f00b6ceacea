"""The notebook and the project of `examples/`, run as a user runs them."""

import json
import os
import subprocess
import sys

import pytest
from pages import ROOT, blocks_of

import lightning_distill as ld

EXAMPLES = ROOT / "examples"
# What the script `lightning-distill` does; -P leaves the working directory out of sys.path.
COMMAND = (
    f"import sys; sys.path[:0] = {[one for one in sys.path if one]}; "
    "from lightning_distill.cli.app import main; main()"
)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "distil_in_a_notebook.ipynb").read_text())["cells"]
    names = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    baseline, distilled = names["table"].sort_values("loss.alpha")["student.nll"]
    assert distilled < baseline
    assert distilled == pytest.approx(names["results"].student.nll, rel=1e-4)
    assert isinstance(names["results"], ld.Results)
    assert all(p.grad is not None for p in names["small"].parameters())
    assert (names["sweep"].folder / "report.html").exists()


@pytest.mark.slow
def test_a_project_of_ones_own_is_used_from_its_folder(tmp_path):
    """With the package as it is: a loss, a source and a callback that are no part of it."""
    project = EXAMPLES / "my_project"
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", COMMAND, "--config-dir", "conf"),
            *("experiment=sums", "logger=csv", f"paths.outputs={tmp_path}", "trainer=cpu"),
            *("teacher.max_steps=20", "student.max_steps=20"),
        ],
        cwd=project,
        env={**os.environ, "LIGHTNING_DISTILL_ALLOW": "my_project"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [json.loads(file.read_text()) for file in tmp_path.rglob("results.json")]
    assert {job["status"] for job in jobs} == {"finished"}


def test_the_tutorial_shows_the_files_of_the_project():
    project = EXAMPLES / "my_project"
    files = [file.read_text() for kind in ("*.py", "*.yaml") for file in project.rglob(kind)]
    shown = [
        block.code
        for block in blocks_of(ROOT / "docs" / "tutorials" / "my-project.md")
        if block.language in ("python", "yaml")
    ]
    assert len(shown) == 5
    assert all(any(code in file for file in files) for code in shown)
