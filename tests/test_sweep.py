"""The comparison of jobs, on folders written by hand."""

import csv
import json
import re

import pytest
import yaml

from lightning_distill.comparison import gather, table_cells
from lightning_distill.sweep import folder_name, summarise, sweep_name

TEACHER = {
    "parameters": 1000,
    "nll": 4.0,
    "perplexity": 54.6,
    "bits_per_byte": 2.0,
    "calibration_error": 0.01,
}


@pytest.fixture
def job(tmp_path):
    def write(
        name,
        nll,
        seed=0,
        steps=10,
        sample="fine",
        status="finished",
        start="random",
        transfer=None,
        **loss,
    ):
        folder = tmp_path / f"{name},seed={seed}"
        (folder / ".hydra").mkdir(parents=True)
        cfg = {
            "seed": seed,
            "data": {"batch_size": 4},
            "student": {"hidden_size": 8, "max_steps": steps, "initialize": start},
            "transfer": {"num_blocks": None, **(transfer or {})},
            "optimizer": {"lr": 0.1},
            "schedule": {},
            "trainer": {},
            "loss": {"alpha": 1.0, "temperature": 1.0, "hard_target": "labels", **loss},
        }
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(cfg))
        scores = {"nll": nll, "bits_per_byte": nll / 2, "teacher_agreement": 0.5}
        student = TEACHER | {"parameters": 100} | scores
        results = {
            "status": status,
            "seed": seed,
            "key": f"{name} {seed}",
            "overrides": [f"name={name}", f"seed={seed}", "common=1"],
        }
        if status == "finished":
            results |= {
                "teacher": TEACHER,
                "student": student,
                "cost": {"teacher_seconds": 0.0, "student_seconds": 5.0},
            }
        else:
            results |= {"error": "no <b>memory</b>", "mendable": False}
        (folder / "results.json").write_text(json.dumps(results))
        sample = [{"prompt": "Once", "student": sample, "teacher": "upon"}]
        (folder / "samples.json").write_text(json.dumps(sample))
        (folder / "metrics.csv").write_text(
            f"epoch,step,train/loss,validation/nll\n0,9,5.5,\n0,9,,{nll}\n"
        )

    return write


def test_the_gap_is_closed_over_the_same_training_without_a_teacher(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("longer", 4.6, steps=20, alpha=0)
    job("distilled", 4.25)
    row = {r.name.split(",")[0]: r for r in gather(tmp_path)}["name=distilled"]
    assert row.gap_closed == pytest.approx((5.0 - 4.25) / (5.0 - 4.0))
    assert row.gap_closed_best == pytest.approx((4.6 - 4.25) / (4.6 - 4.0))


def test_a_baseline_of_another_seed_is_not_the_measure(job, tmp_path):
    job("plain", 5.0, seed=0, alpha=0)
    job("plain", 6.0, seed=1, alpha=0)
    job("distilled", 4.5, seed=1)
    (row,) = [r for r in gather(tmp_path) if "distilled" in r.name]
    assert row.gap_closed == pytest.approx((6.0 - 4.5) / (6.0 - 4.0))


def test_a_start_from_the_teacher_is_no_baseline_and_measured_by_a_random_one(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("copied plain", 4.6, start="teacher_layers", alpha=0)
    job("copied", 4.25, start="teacher_layers")
    rows = {r.name.split(",")[0].removeprefix("name="): r for r in gather(tmp_path)}
    assert rows["copied"].gap_closed == rows["copied"].gap_closed_best == pytest.approx(0.75)
    assert rows["copied plain"].gap_closed == pytest.approx(0.4)


def test_a_baseline_serves_every_transfer_of_its_text(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("cached", 4.25, transfer={"_target_": "x.Cached", "k": 8})
    job("other text", 4.25, transfer={"_target_": "x.Cached", "num_blocks": 7})
    job("teacher's text", 4.5, alpha=0, transfer={"_target_": "x.Sequence"})
    gaps = {r.name.split(",")[0].removeprefix("name="): r.gap_closed for r in gather(tmp_path)}
    assert gaps["cached"] == pytest.approx(0.75)
    assert gaps["teacher's text"] == pytest.approx(0.5)
    assert gaps["other text"] is gaps["plain"] is None


def test_without_a_baseline_no_gap_is_claimed(job, tmp_path):
    job("distilled", 4.5)
    (row,) = gather(tmp_path)
    assert (row.gap_closed, row.gap_closed_best) == (None, None)


def test_labels_of_the_teacher_are_no_baseline(job, tmp_path):
    job("hard teacher", 4.3, alpha=0, hard_target="teacher")
    job("distilled", 4.5)
    assert not any(row.is_baseline for row in gather(tmp_path))


def test_seeds_share_a_line_with_mean_and_deviation(job, tmp_path):
    for seed, nll in enumerate((4.2, 4.3, 4.4)):
        job("distilled", nll, seed=seed)
    job("plain", 5.0, alpha=0)
    teacher, line, _ = table_cells(gather(tmp_path))
    assert teacher[0] == "teacher"
    assert line[0] == "name=distilled (3 seeds)"
    assert line[2] == "4.300 ± 0.100"


def test_the_best_comes_first_and_the_failed_last(job, tmp_path):
    job("b", 4.6)
    job("c", 0, status="failed")
    job("a", 4.4)
    names = [cells[0].split(",")[0] for cells in table_cells(gather(tmp_path))]
    assert names == ["teacher", "name=a", "name=b", "name=c"]


def test_the_summary_is_a_csv_and_a_page_of_its_own(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("distilled", 4.25)
    job("broken", 0, status="failed")
    summarise(tmp_path)
    with (tmp_path / "results.csv").open() as lines:
        rows = {row["job"]: row for row in csv.DictReader(lines)}
    assert float(rows["name=distilled"]["gap_closed"]) == pytest.approx(0.75)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", page)
    for text in ("name=distilled", "75 %", "failed", "lightning-distill name=distilled seed=0"):
        assert text in page


def test_text_in_the_report_is_shown_and_never_run(job, tmp_path):
    job("plain", 5.0, alpha=0, sample="<script>alert(1)</script>")
    job("<img src=x onerror=alert(2)>", 0, status="failed")
    summarise(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<img src=x" not in page
    assert "no <b>memory" not in page


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
