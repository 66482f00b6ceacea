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
    """The outputs of a run, its teacher and its student."""
    outputs = tmp_path_factory.mktemp("teacher_check")
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
    roles = ["teacher=pretrained", f"teacher.name={tmp_path / 'teacher'}", "teacher.max_steps=0"]
    output = in_process(*roles, f"paths.outputs={outputs}").stdout
    message = r"teacher's validation nll is ([\d.]+), no better than uniform \(([\d.]+)\)"
    warnings = re.findall(message, output)
    assert len(warnings) == (scale < 0)
    if warnings:
        teacher_nll, uniform = map(float, warnings[0])
        assert teacher_nll > uniform == pytest.approx(math.log(300), abs=1e-3)
    kept = list((outputs / "artifacts" / "teacher_check").glob("*/manifest.json"))
    in_process(*roles, f"paths.outputs={outputs}", "loss.temperature=2")
    assert list((outputs / "artifacts" / "teacher_check").glob("*/manifest.json")) == kept


def test_a_student_better_than_its_teacher_is_warned_about_and_trained(
    in_process, trained, tmp_path
):
    outputs, teacher, student = trained
    roles = [
        "teacher=pretrained", f"teacher.name={student}", "teacher.max_steps=0",
        "student=pretrained", f"student.name={teacher}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    output = in_process(*roles, f"paths.outputs={outputs}").stdout
    assert "before training is" in output
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (teacher, tmp_path / "run" / "student")
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)
