"""What the sections of the report say, on hand-written folders."""

import json
import re

import pytest

from lightning_distill.report.about import about
from lightning_distill.report.curves import OBJECTIVE, VALIDATION, curves
from lightning_distill.report.jobs_table import glossary, jobs_table
from lightning_distill.report.page import token_text
from lightning_distill.report.pairs import pairs
from lightning_distill.report.parallel import parallel_coordinates
from lightning_distill.report.resolved import resolved
from lightning_distill.report.sections import differences
from lightning_distill.report.summarize import summarize
from lightning_distill.sweeps.comparison import compare_jobs


def head_of(folder):
    jobs = compare_jobs(folder)
    return dict(about(jobs, [resolved(job) for job in jobs]))


def test_the_head_says_when_where_and_of_what_the_jobs_were_made(job, tmp_path):
    folder = job("distilled", 4.3, temperature=2.0, alpha=1.0)
    job("plain", 5.0, alpha=0)
    file = folder / "results.json"
    environment = {"machine": "2 cores of X", "python": "3.11.7", "torch": "2.13.0"}
    more = {
        "started": "2026-11-29 10:30:00.5",
        "examples": "tokens: 10 train; vocabulary 8; 0123abcd",
        "environment": environment,
        "training": {"steps": 10, "max_steps": 10},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    facts = head_of(tmp_path)
    assert facts["date"] == "2026-11-29 10:30"
    assert facts["machine"] == "2 cores of X"
    assert facts["software"] == "torch 2.13.0, Python 3.11.7"
    assert facts["examples"] == "tokens: 10 train; vocabulary 8"
    assert facts["student"].startswith("0.0001 M, 10 steps, 40 k target tokens")
    assert facts["loss"] == "temperature 2.0; alpha 1.0; hard target labels; labels alone"


def test_a_head_without_facts_is_left_out(job, tmp_path):
    job("failed", 0, status="failed")
    assert head_of(tmp_path).keys() <= {"loss"}


def test_teachers_are_rows_with_their_own_scores(sweep_of_24):
    table = jobs_table(compare_jobs(sweep_of_24))
    (cells,) = table["teachers"]
    shown = {cell.column: cell.text for cell in cells if cell.text}
    assert shown["student.nll"] == "4.000"
    assert shown["student.parameters"] == "3.055"
    assert not shown.keys() & {"gap_closed", "student.teacher_agreement"}


def test_the_glossary_has_each_column(sweep_of_24):
    table = jobs_table(compare_jobs(sweep_of_24))
    terms = dict(glossary(table))
    assert {column.heading for column in table["columns"]} < terms.keys()
    assert all(terms.values())


def test_parallel_coordinates_are_lines_through_settings_and_score(sweep_of_24):
    figure = parallel_coordinates(compare_jobs(sweep_of_24))
    assert len(figure["data"]) == 24
    assert figure["layout"]["xaxis"]["ticktext"] == ["student", "temperature", "alpha", "nll"]
    best, worst = figure["data"][-1], figure["data"][0]
    assert (best["y"][-1], worst["y"][-1]) == (0, 1)


def test_parallel_coordinates_need_three_keys(job, tmp_path):
    job("a", 4.0)
    job("b", 4.1)
    assert parallel_coordinates(compare_jobs(tmp_path)) is None


def test_curves_have_each_axis_and_lines_for_teacher_and_baseline(sweep_of_24):
    jobs = compare_jobs(sweep_of_24)
    figure = curves(jobs, VALIDATION)
    assert figure["layout"]["meta"]["axes"] == ["step", "tokens", "seconds"]
    axes = figure["data"][0]["meta"]["x"]
    assert axes["step"][:2] == [10, 20]
    assert axes["tokens"][:2] == [5120, 10240]
    heights = [line["y0"] for line in figure["layout"]["shapes"]]
    best = min(job.nll for job in jobs if job.method == "baseline")
    assert heights == [4.0, pytest.approx(best, abs=1e-3)]
    assert "shapes" not in curves(jobs, OBJECTIVE)["layout"]


def test_curves_of_older_runs_have_steps_alone(job, tmp_path):
    file = job("old", 4.3) / "metrics.csv"
    lines = [line.split(",")[:4] for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(",".join, lines)))
    assert curves(compare_jobs(tmp_path), VALIDATION)["layout"]["meta"]["axes"] == ["step"]


def test_two_jobs_differ_in_resolved_settings(job, tmp_path):
    """`lr: ${.base}` is shown as the value that it has."""
    for name, base in (("a", 0.1), ("b", 0.2)):
        file = job(name, 4.0 + base) / ".hydra" / "config.yaml"
        text = file.read_text().replace("lr: 0.1", f"lr: ${{.base}}\n  base: {base}")
        file.write_text(text)
    jobs = compare_jobs(tmp_path)
    settings = [resolved(job) for job in jobs]
    shown = {one["name"]: one["settings"] for one in pairs(jobs, settings, jobs_table(jobs))}
    assert shown["name=a"] == {"optimizer.base": "0.1", "optimizer.lr": "0.1"}
    assert shown["name=b"]["optimizer.lr"] == "0.2"


def test_several_sweeps_share_a_report(in_process, sweep_of_24, tmp_path):
    other = tmp_path / "other" / "sizes"
    other.parent.mkdir()
    sweep_of_24.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(other)
    second = tmp_path / "second"
    second.mkdir()
    for folder in sorted(other.glob("*seed=0*")):
        folder.rename(second / folder.name)
    sweeps = f"report.sweep=[{other},{second}]"
    done = in_process("stage=report", sweeps, f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "out" / "reports").glob("sizes+second-*/report.html")
    text = page.read_text()
    assert "24 of 24 jobs finished" in text
    assert text.count('data-column="sweep">sizes<') == 12
    assert text.count('data-column="sweep">second<') == 12
    assert (page.parent / "results.csv").exists()


def test_the_largest_difference_is_that_of_the_best_distilled_job(job, tmp_path, capsys):
    job("good", 4.3)
    job("best", 4.2)
    job("plain", 4.1, alpha=0)
    assert differences(compare_jobs(tmp_path))["job"].name == "name=best"
    summarize(tmp_path)
    page = (tmp_path / "report.html").read_text().partition('<section id="differences">')[2]
    row = [re.sub(r"<[^>]+>|&nbsp;", " ", cell) for cell in re.findall(r"<td.*?</td>", page)[:5]]
    assert [" ".join(cell.split()) for cell in row] == [
        *("Once", "␣upon", "3.00", "␣upon 0.90", "␣the 0.50, ␣a 0.20")
    ]


@pytest.mark.parametrize("content", ["[", "{}", "[1]"])
def test_damaged_predictions_are_named_and_the_rest_is_shown(job, tmp_path, capsys, content):
    (job("a", 4.3) / "predictions.json").write_text(content)
    summarize(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Missing: predictions.json" in page
    assert "Where student and teacher differ" not in page


@pytest.mark.parametrize(
    ("text", "shown"), [(" a b ", "␣a b␣"), ("  ", "␣␣"), ("a\n", "a↵"), ("", ""), ("\t", "⇥")]
)
def test_white_space_of_tokens_is_visible(text, shown):
    assert token_text(text) == shown
