"""The warnings about a teacher before a student is trained on it."""

import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(in_process, tmp_path_factory):
    """The outputs of a run, and a teacher and a student of it."""
    outputs = tmp_path_factory.mktemp("sight")
    folder = outputs / "run"
    in_process("teacher.max_steps=60", f"paths.outputs={outputs}", f"hydra.run.dir={folder}")
    (teacher,) = (outputs / "artifacts" / "teacher").glob("*/")
    return outputs, teacher, folder / "student"


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_a_teacher_worse_than_uniform_is_warned_about_once(in_process, trained, tmp_path, scale):
    """A final norm of opposite sign inverts the logits."""
    outputs, teacher, _ = trained
    shutil.copytree(teacher, tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    weights["model.norm.weight"] *= scale
    save_file(weights, tmp_path / "teacher" / "model.safetensors", {"format": "pt"})
    of = ["teacher=pretrained", f"teacher.name={tmp_path / 'teacher'}", "teacher.max_steps=0"]
    said = in_process(*of, f"paths.outputs={outputs}").stdout
    message = r"teacher's validation nll is ([\d.]+), no better than uniform \(([\d.]+)\)"
    worse = re.findall(message, said)
    assert len(worse) == (scale < 0)
    if worse:
        theirs, uniform = map(float, worse[0])
        assert theirs > uniform == pytest.approx(math.log(300), abs=1e-3)
    kept = list((outputs / "artifacts" / "teacher_check").glob("*/manifest.json"))
    in_process(*of, f"paths.outputs={outputs}", "loss.temperature=2")
    assert list((outputs / "artifacts" / "teacher_check").glob("*/manifest.json")) == kept


def test_a_student_better_than_its_teacher_is_warned_about_and_trained(
    in_process, trained, tmp_path
):
    outputs, teacher, student = trained
    roles = [
        "teacher=pretrained", f"teacher.name={student}", "teacher.max_steps=0",
        "student=pretrained", f"student.name={teacher}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    said = in_process(*roles, f"paths.outputs={outputs}").stdout
    assert "before training is" in said
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (teacher, tmp_path / "run" / "student")
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)
