"""The names of a sweep's folder and of its jobs' folders."""

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


def test_a_command_with_more_values_resumes_the_same_sweep():
    few = ["student=xs,s", "loss.alpha=0,1", "seed=1", "paths.outputs=a", "sweep.rerun=all"]
    more = ["student=xs,s,m", "loss.alpha=range(3)", "seed=1", "logger=none"]
    assert sweep_name(None, few) == sweep_name(None, more) == "loss.alpha,student,seed=1"
    assert sweep_name(None, [*few, "data.batch_size=8"]) != sweep_name(None, few)
    assert sweep_name(None, ["sweep=sizes", "student=xs"]) == "sizes,student=xs"
    assert sweep_name("mine", few) == "mine"
    assert sweep_name(None, []) == "all"
