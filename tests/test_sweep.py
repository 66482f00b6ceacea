"""The names of a sweep's folder and of its jobs'. What a sweep does is in test_resume.py."""

from omegaconf import OmegaConf

from lightning_distill.sweeps.job import Job, read_results, write_results
from lightning_distill.sweeps.naming import folder_name, sweep_name
from lightning_distill.sweeps.resume import run_once


def test_a_folders_name_holds_no_slash_and_is_never_too_long():
    assert folder_name(["student=xs", "loss.alpha=1"]) == "student=xs,loss.alpha=1"
    assert folder_name(["experiment/job=baseline"]) == "job=baseline"
    assert "/" not in folder_name(["data.path=/a/b"])
    long = [folder_name([f"data.path={'x' * 300}{i}"]) for i in range(2)]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 200


def test_more_values_of_the_same_settings_go_on_with_the_same_sweep():
    few = ["student=xs,s", "loss.alpha=0,1", "seed=1", "paths.outputs=a", "sweep.rerun=all"]
    more = ["student=xs,s,m", "loss.alpha=range(3)", "seed=1", "logger=none"]
    assert sweep_name(None, few) == sweep_name(None, more) == "loss.alpha,student,seed=1"
    assert sweep_name(None, [*few, "data.batch_size=8"]) != sweep_name(None, few)
    assert sweep_name(None, ["sweep=sizes", "student=xs"]) == "sizes,student=xs"
    assert sweep_name("mine", few) == "mine"
    assert sweep_name(None, []) == "all"


def test_a_sweep_that_gives_up_leaves_an_interrupted_job_to_go_on_another_time(tmp_path):
    sweep = {"rerun": "failed", "stop_after_failures": 1}
    cfg = OmegaConf.create({"paths": {"outputs": str(tmp_path)}, "sweep": sweep})
    jobs = [Job(tmp_path / "sweep" / n, n, "sweep", [], 0, n, "now") for n in ("bad", "cut", "new")]
    bad, cut, new = jobs
    write_results(bad.folder, bad.state("failed"))
    write_results(cut.folder, cut.state("running") | {"started": "before"})
    for job in (cut, new):
        assert run_once(cfg, job, dict)["status"] == "not run"
    assert cut.was_interrupted()
    assert read_results(new.folder)["status"] == "not run"
