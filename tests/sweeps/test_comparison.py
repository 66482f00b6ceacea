"""The comparison of jobs, on hand-written folders."""

from statistics import mean

import pytest
from conftest import write_job

from lightning_distill.sweeps.comparison import (
    compare_jobs,
    group_by_setting,
    pareto_front,
    rank_settings,
    variance_explained,
)


def test_gap_closed_is_relative_to_the_same_training_without_a_teacher(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("longer", 4.6, steps=20, alpha=0)
    job("distilled", 4.25)
    row = {r.name.split(",")[0]: r for r in compare_jobs(tmp_path)}["name=distilled"]
    assert row.gap_closed == pytest.approx((5.0 - 4.25) / (5.0 - 4.0))
    assert row.gap_closed_best_baseline == pytest.approx((4.6 - 4.25) / (4.6 - 4.0))


@pytest.mark.parametrize("length", [{"epochs": 2}, {"keep": "best"}, {"stop_after": 3}], ids=str)
def test_a_baseline_of_another_length_or_selection_is_not_the_same_training(tmp_path, length):
    write_job(tmp_path / "plain", [], {"student": length, "loss": {"alpha": 0}}, 5.0)
    write_job(tmp_path / "distilled", [], {"student": {}}, 4.25)
    write_job(tmp_path / "equal", [], {"student": length}, 4.5)
    rows = {row.folder.name: row for row in compare_jobs(tmp_path)}
    assert rows["distilled"].gap_closed is None
    assert rows["distilled"].gap_closed_best_baseline == pytest.approx(0.75)
    assert rows["equal"].gap_closed == pytest.approx(0.5)


def test_a_job_is_compared_with_the_baseline_of_its_seed(job, tmp_path):
    job("plain", 5.0, seed=0, alpha=0)
    job("plain", 6.0, seed=1, alpha=0)
    job("distilled", 4.5, seed=1)
    (row,) = [r for r in compare_jobs(tmp_path) if "distilled" in r.name]
    assert row.gap_closed == pytest.approx((6.0 - 4.5) / (6.0 - 4.0))


def test_a_student_initialized_from_its_teacher_is_not_a_baseline(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("copied plain", 4.6, start="teacher_layers", alpha=0)
    job("copied", 4.25, start="teacher_layers")
    rows = {r.name.split(",")[0].removeprefix("name="): r for r in compare_jobs(tmp_path)}
    assert (
        rows["copied"].gap_closed == rows["copied"].gap_closed_best_baseline == pytest.approx(0.75)
    )
    assert rows["copied plain"].gap_closed == pytest.approx(0.4)


def test_where_all_start_from_their_teacher_those_on_labels_are_the_baselines(job, tmp_path):
    job("labels", 5.0, start="teacher_layers", alpha=0)
    job("distilled", 4.25, start="teacher_layers")
    rows = {r.name.split(",")[0].removeprefix("name="): r for r in compare_jobs(tmp_path)}
    assert rows["distilled"].gap_closed == pytest.approx(0.75)
    assert rows["labels"].method == "baseline"
    assert rows["labels"].gap_closed is None


def test_students_of_one_size_have_as_many_parameters_whatever_they_start_from(tmp_path):
    size = {"hidden_size": 8, "num_hidden_layers": 2}
    part = {"hidden_size": None, "num_hidden_layers": None, "initialize": "teacher_layers"}
    write_job(tmp_path / "plain", [], {"student": size, "loss": {"alpha": 0}}, 5.0)
    write_job(tmp_path / "part", [], {"student": part}, 4.25)
    write_job(tmp_path / "larger", [], {"student": part}, 4.25, parameters=101)
    rows = {row.folder.name: row for row in compare_jobs(tmp_path)}
    assert rows["part"].gap_closed == pytest.approx(0.75)
    assert rows["larger"].gap_closed is None


def test_a_baseline_is_shared_by_every_transfer_of_its_text(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("cached", 4.25, transfer={"_target_": "x.Cached", "k": 8})
    job("other text", 4.25, transfer={"_target_": "x.Cached", "num_blocks": 7})
    job("teacher's text", 4.5, alpha=0, transfer={"_target_": "x.Sequence"})
    gaps = {
        r.name.split(",")[0].removeprefix("name="): r.gap_closed for r in compare_jobs(tmp_path)
    }
    assert gaps["cached"] == pytest.approx(0.75)
    assert gaps["teacher's text"] == pytest.approx(0.5)
    assert gaps["other text"] is gaps["plain"] is None


def test_without_a_baseline_there_is_no_gap_closed(job, tmp_path):
    job("distilled", 4.5)
    (row,) = compare_jobs(tmp_path)
    assert (row.gap_closed, row.gap_closed_best_baseline) == (None, None)


def test_training_on_the_teachers_labels_is_not_a_baseline(job, tmp_path):
    job("hard teacher", 4.3, alpha=0, hard_target="teacher")
    job("distilled", 4.5)
    assert not any(row.is_baseline for row in compare_jobs(tmp_path))


def test_gap_closed_is_not_relative_to_label_smoothing(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("smooth", 4.8, alpha=0, label_smoothing=0.1)
    job("distilled", 4.25)
    rows = {r.name.split(",")[0].removeprefix("name="): r for r in compare_jobs(tmp_path)}
    assert rows["distilled"].gap_closed == pytest.approx(0.75)
    assert rows["distilled"].gain_over_baseline == pytest.approx(0.75)
    assert rows["distilled"].gain_over_label_smoothing == pytest.approx(4.8 - 4.25)
    assert rows["smooth"].gain_over_baseline == pytest.approx(0.2)
    assert rows["smooth"].gap_closed is rows["plain"].gain_over_baseline is None


def test_label_smoothing_is_compared_at_equal_steps(job, tmp_path):
    job("smooth", 4.8, steps=20, alpha=0, label_smoothing=0.1)
    job("distilled", 4.25)
    assert all(row.gain_over_label_smoothing is None for row in compare_jobs(tmp_path))


def test_seeds_of_one_setting_form_a_group(job, tmp_path):
    for seed, nll in enumerate((4.2, 4.3, 4.4)):
        job("distilled", nll, seed=seed)
    job("plain", 5.0, alpha=0)
    best, plain = group_by_setting(compare_jobs(tmp_path))
    assert (best.name, best.scores("nll")) == ("name=distilled", [4.2, 4.3, 4.4])
    assert len(plain.jobs) == 1


def test_the_best_job_has_the_lowest_mean_over_seeds(job, tmp_path):
    for seed, (steady, lucky) in enumerate(((4.3, 4.1), (4.31, 4.7))):
        job("steady", steady, seed=seed)
        job("lucky", lucky, seed=seed)
    found = rank_settings(compare_jobs(tmp_path))
    assert (found.best.name, found.runner_up.name) == ("name=steady", "name=lucky")
    assert found.lead == pytest.approx(4.4 - 4.305)
    assert not found.is_significant


def test_a_lead_beyond_the_confidence_interval_is_significant(job, tmp_path):
    for seed in range(3):
        job("good", 4.3 + seed / 100, seed=seed)
        job("bad", 4.9 + seed / 100, seed=seed)
    assert rank_settings(compare_jobs(tmp_path)).is_significant


def test_without_repeated_seeds_significance_is_unknown(job, tmp_path):
    job("good", 4.3)
    job("bad", 4.9)
    found = rank_settings(compare_jobs(tmp_path))
    assert found.lead_half_width is None
    assert not found.is_significant


def test_a_copy_of_the_best_results_is_not_the_runner_up(job, tmp_path):
    job("best", 4.3, key="one")
    job("same", 4.3, key="one", same_as="best")
    job("other", 4.5)
    assert rank_settings(compare_jobs(tmp_path)).runner_up.name == "name=other"


def test_jobs_with_different_tokens_are_ranked_by_bits_per_byte(job, tmp_path):
    job("few tokens", 5.0, bits=1.9)
    job("many tokens", 4.0, bits=2.1)
    assert rank_settings(compare_jobs(tmp_path)).best.name == "name=few tokens"


def test_variance_explained_equals_eta_squared(job, tmp_path):
    # nll = 4 + a + 3 b: a explains 1/10 of the variance, b 9/10, the seed nothing.
    for a in (0, 1):
        for b in (0, 1):
            for seed in (0, 1):
                job(f"{a}{b}", 4.0 + a + 3 * b, seed, more=[f"x.a={a}", f"y.b={b}"])
    shares = dict(variance_explained(compare_jobs(tmp_path)))
    assert shares == pytest.approx({"y.b": 0.9, "x.a": 0.1, "seed": 0.0})


def test_a_setting_with_a_different_value_in_every_job_has_no_share(job, tmp_path):
    for n, nll in enumerate((4.0, 4.5, 5.0)):
        job(f"{n}", nll, more=[f"optimizer.lr={n}"])
    assert variance_explained(compare_jobs(tmp_path)) == [("optimizer.lr", None)]


def test_the_pareto_front_has_no_dominated_group(job, tmp_path):
    for name, parameters, nll in (("a", 100, 5), ("b", 200, 4.5), ("c", 300, 4.7), ("d", 400, 4)):
        job(name, nll, parameters=parameters)
    front = pareto_front(group_by_setting(compare_jobs(tmp_path)))
    assert [group.name for group in front] == ["name=a", "name=b", "name=d"]


def test_24_jobs_form_12_groups(sweep_of_24):
    rows = compare_jobs(sweep_of_24)
    assert len(group_by_setting(rows)) == 12
    assert {row.method for row in rows} == {"baseline", "distilled"}
    shares = dict(variance_explained(rows))
    assert max(shares, key=shares.get) == "loss.alpha"
    assert mean(row.gap_closed for row in rows if row.gap_closed) > 0
