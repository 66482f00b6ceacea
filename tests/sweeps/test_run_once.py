"""Which jobs of a sweep run, and what becomes of the others. Nothing is trained here."""

import pytest

from lightning_distill.sweeps.job import Job, read_results, write_results
from lightning_distill.sweeps.resume import ResumePolicy, job_status, last_folder, run_once
from lightning_distill.training.cost import Cost


@pytest.fixture
def make_job(tmp_path):
    def make(name, key="key", started="now"):
        return Job(tmp_path / "sweep" / name, name, "sweep", [], 0, key, started)

    return make


def finish(job, nll=2.0):
    """Does what a run does: leaves a student and results. Returns the results."""
    (job.folder / "student").mkdir(parents=True)
    (job.folder / "student" / "weights").write_text("weights")
    scores = {"student": {"nll": nll, "parameters": 7}}
    write_results(job.folder, job.final_results(Cost(student_seconds=9.0), scores))
    return read_results(job.folder)


def must_not_run():
    raise AssertionError("the job was run")


def test_a_finished_job_is_run_once(make_job, tmp_path):
    job, policy = make_job("job"), ResumePolicy(tmp_path)
    results = run_once(policy, job, lambda: finish(job))
    assert run_once(policy, job, must_not_run) == results
    assert job_status(policy, job, job.folder) == ("finished", job.folder)


def test_a_job_reuses_the_results_of_another_with_its_key_at_no_cost(make_job, tmp_path):
    first, second, policy = make_job("first"), make_job("second"), ResumePolicy(tmp_path)
    run_once(policy, first, lambda: finish(first))
    assert last_folder(tmp_path, second) == first.folder
    results = run_once(policy, second, must_not_run)
    assert results["same_as"] == str(first.folder)
    assert results["cost"]["student_seconds"] == 0
    assert results["student"] == read_results(first.folder)["student"]
    assert (second.folder / "student" / "weights").read_text() == "weights"


def test_another_key_or_a_lost_student_means_another_run(make_job, tmp_path):
    first, other, policy = make_job("first"), make_job("other", key="other"), ResumePolicy(tmp_path)
    run_once(policy, first, lambda: finish(first))
    assert job_status(policy, other, other.folder) == ("new", other.folder)
    (first.folder / "student" / "weights").unlink()
    (first.folder / "student").rmdir()
    assert job_status(policy, first, first.folder)[0] == "new"


def test_rerun_decides_what_becomes_of_failed_and_of_finished_jobs(make_job, tmp_path):
    failed, done = make_job("failed", key="failed"), make_job("done", key="done")
    write_results(failed.folder, failed.results("failed"))
    finish(done)
    later = make_job("done", key="done", started="later")
    status = {
        rerun: [job_status(ResumePolicy(tmp_path, rerun), j, j.folder)[0] for j in (failed, later)]
        for rerun in ("failed", "none", "all")
    }
    assert status == {
        "failed": ["new", "finished"],
        "none": ["failed", "finished"],
        "all": ["new", "new"],
    }


def test_a_sweep_that_gives_up_leaves_an_interrupted_job_to_go_on_another_time(make_job, tmp_path):
    policy = ResumePolicy(tmp_path, stop_after_failures=1)
    bad, cut, new = (make_job(name, key=name) for name in ("bad", "cut", "new"))
    write_results(bad.folder, bad.results("failed"))
    write_results(cut.folder, cut.results("running") | {"started": "before"})
    for job in (cut, new):
        assert run_once(policy, job, dict)["status"] == "not run"
    assert cut.was_interrupted()
    assert read_results(new.folder)["status"] == "not run"
