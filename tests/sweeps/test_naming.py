"""The names of a sweep's folder and of its jobs' folders."""

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_distill.sweeps.job import Job, write_results
from lightning_distill.sweeps.naming import job_name, sweep_name


def test_a_jobs_name_has_no_slash_and_a_limited_length(tmp_path):
    def name(*overrides):
        return job_name(list(overrides), tmp_path, "key")

    assert name("student=xs", "loss.alpha=1") == "loss.alpha=1,student=xs"
    assert name("experiment=demo", "experiment/job=baseline") == "job=baseline"
    assert name("stage=plan", "paths.outputs=a") == "job"
    assert "/" not in name("data.path=/a/b")
    long = [name(f"data.path={'x' * 300}{i}") for i in range(2)]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 200


def test_a_job_whose_name_is_that_of_other_settings_has_its_key_in_its_name(tmp_path):
    job = Job(tmp_path / "seed=1", "seed=1", "sweep", ["seed=1"], 1, "0123456789", "now")
    write_results(job.folder, job.results("running"))
    assert job_name(["seed=1"], tmp_path, "0123456789") == "seed=1"
    assert job_name(["seed=1"], tmp_path, "abcdefghij") == "seed=1-abcdefgh"


FEW = ["student=xs,s", "loss.alpha=0,1", "seed=1", "paths.outputs=a", "sweep.rerun=all"]


def test_a_sweep_is_named_by_what_varies_and_a_hash():
    assert re.fullmatch(r"alpha-student-[0-9a-f]{8}", sweep_name(None, FEW))
    assert re.fullmatch(r"sizes-[0-9a-f]{8}", sweep_name(None, ["sweep=sizes", "student=xs"]))
    assert re.fullmatch(r"chat-seed-[0-9a-f]{8}", sweep_name(None, ["experiment=chat", "seed=0,1"]))
    alike = ["student.max_steps=1,2", "teacher.max_steps=1,2"]
    assert sweep_name(None, alike).startswith("student.max_steps-teacher.max_steps-")
    assert sweep_name("mine", FEW) == "mine"


def test_a_command_with_more_values_or_another_order_resumes_the_same_sweep():
    more = ["student=xs,s,m", "loss.alpha=range(3)", "seed=1", "logger=none"]
    assert sweep_name(None, FEW) == sweep_name(None, more) == sweep_name(None, more[::-1])


def test_different_sweeps_have_different_folders():
    commands = [
        [],
        FEW,
        [*FEW, "data.batch_size=8"],
        ["student=xs,s", "seed=1"],
        ["student=xs", "loss.alpha=0,1"],
        ["student=s", "loss.alpha=0,1"],
        ["sweep=sizes"],
        ["sweep=sizes", "student=xs"],
        ["experiment=sizes"],
        ["experiment=chat,images"],
        ["student.max_steps=1,2"],
        ["teacher.max_steps=1,2"],
        ["+loss.beta=1,2"],
        ["data.path='a/b c'", "seed=0,1"],
        ["data.path='a/b_c'", "seed=0,1"],
    ]
    assert len({sweep_name(None, command) for command in commands}) == len(commands)


def test_a_sweeps_name_needs_no_quotes():
    """Neither in a shell nor as Hydra's value."""
    name = sweep_name(
        None, ["+loss.beta=1,2", "optimizer@teacher.optimizer=a,b", "experiment='ü x'"]
    )
    assert shlex.quote(name) == name
    assert OverridesParser.create().parse_override(f"report.sweep={name}").value() == name
