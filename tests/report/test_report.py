"""The report of a sweep, on hand-written folders; its page in a real browser."""

import csv
import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stdout
from html import unescape

import plotly.graph_objects as go
import pytest
from browser import CHROMIUM

from lightning_distill.report import figures
from lightning_distill.report.calibration import reliability
from lightning_distill.report.curves import VALIDATION, curves
from lightning_distill.report.formatting import short_name
from lightning_distill.report.heatmaps import heat_maps
from lightning_distill.report.page import as_json
from lightning_distill.report.parallel import parallel_coordinates
from lightning_distill.report.summarize import summarize
from lightning_distill.report.tables import table_cells
from lightning_distill.sweeps.comparison import compare_jobs

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def read_csv(folder):
    with (folder / "results.csv").open(encoding="utf-8") as lines:
        return {row["job"]: row for row in csv.DictReader(lines)}


def test_the_table_has_mean_and_deviation_over_seeds(job, tmp_path):
    for seed, nll in enumerate((4.2, 4.3, 4.4)):
        job("distilled", nll, seed=seed)
    job("plain", 5.0, alpha=0)
    _, teacher, line, _ = table_cells(compare_jobs(tmp_path))
    assert teacher[0] == "teacher"
    assert line[0] == "name=distilled (3 seeds)"
    assert line[2] == "4.300 ± 0.100"


def test_the_table_lists_the_best_job_first_and_failed_jobs_last(job, tmp_path):
    job("b", 4.6)
    job("c", 0, status="failed")
    job("a", 4.4)
    names = [cells[0].split(",")[0] for cells in table_cells(compare_jobs(tmp_path))]
    assert names == ["job", "teacher", "name=a", "name=b", "name=c"]


def test_jobs_that_were_cut_short_are_marked_with_their_steps(job, tmp_path, capsys):
    """In the table, on the page, and where means over seeds are compared."""
    for seed, steps in enumerate((5, 6)):
        training = {"steps": steps, "max_steps": 4000, "kept_step": steps}
        job("cut", 4.2, seed=seed, training=training)
    job("whole", 4.5, training={"steps": 4000, "max_steps": 4000, "kept_step": 4000})
    job("old", 4.6)  # results of a version that did not count steps
    headings, _, *lines = table_cells(compare_jobs(tmp_path))
    steps = {line[0]: line[headings.index("steps")] for line in lines}
    assert steps == {"name=cut (2 seeds)": "5–6 of 4,000", "name=whole": "4,000", "name=old": ""}
    summarize(tmp_path)
    note = "2 of 4 jobs cut short, at step 5–6 of 4,000"
    assert note in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "report.html").read_text()
    assert note in page
    row = page.partition('<section id="seeds">')[2].partition("</tr>")[2].partition("</tr>")[0]
    assert "<td>5–6 of 4,000</td>" in row
    cells = re.findall(
        r'data-column="training.steps"[^>]*>(.*?)</td>', page.partition('class="jobs"')[2]
    )
    shown = [re.sub("<[^>]*>", "", cell).strip() for cell in cells]
    assert shown == ["5 of 4,000", "6 of 4,000", "4,000", ""]


def test_without_a_job_cut_short_nothing_is_said_of_steps(job, tmp_path, capsys):
    job("whole", 4.5, training={"steps": 400, "max_steps": 400, "kept_step": 300})
    assert "steps" not in table_cells(compare_jobs(tmp_path))[0]
    summarize(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "cut short" not in capsys.readouterr().out + page.lower().partition("plotly")[0]
    assert 'data-column="training.steps"' not in page


def test_the_table_says_reused_for_a_job_with_another_jobs_results(sweep_of_24):
    seconds = {cells[0]: cells[-1] for cells in table_cells(compare_jobs(sweep_of_24))}
    of = "student=xs,loss.temperature={},loss.alpha=0 (2 seeds)"
    assert seconds[of.format(1)] == "5"
    assert seconds[of.format(2)] == "reused"


def test_a_summary_is_a_csv_file_and_a_self_contained_page(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("distilled", 4.25)
    job("broken", 0, status="failed")
    summarize(tmp_path)
    assert float(read_csv(tmp_path)["name=distilled"]["gap_closed"]) == pytest.approx(0.75)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", page)
    for text in ("name=distilled", "75 %", "failed", "lightning-distill name=distilled seed=0"):
        assert text in page


def test_the_csv_has_all_varying_settings_and_all_results(sweep_of_24):
    summarize(sweep_of_24)
    table = read_csv(sweep_of_24)
    assert len(table) == 24
    for row in compare_jobs(sweep_of_24):
        line = table[row.name]
        results = {"nll": row.nll, **json.loads((row.folder / "results.json").read_text())}
        for role in ("teacher", "student", "cost"):
            for key, value in results[role].items():
                assert float(line[f"{role}.{key}"]) == value
        assert line["status"] == "finished"
        assert line["key"] == results["key"]
        assert shlex.split(line["overrides"]) == results["overrides"]
        assert line["student"] == ("xs" if row.config["student"]["hidden_size"] == 64 else "s")
        for key in ("alpha", "temperature"):
            assert float(line[f"loss.{key}"]) == row.config["loss"][key]
        assert int(line["student.hidden_size"]) == row.config["student"]["hidden_size"]


def test_html_in_names_and_samples_is_escaped(job, tmp_path):
    job("plain", 5.0, alpha=0, sample="<script>alert(1)</script>")
    job("</script><img src=x onerror=alert(2)>", 4.5)
    job("<img src=x onerror=alert(2)>", 0, status="failed")
    summarize(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<img src=x" not in page
    assert "no <b>memory" not in page


def test_json_in_the_page_round_trips_and_cannot_end_its_script_element():
    content = {"name": "</script><!-- & é \u2028", "z": [1.5, None]}
    text = as_json(content | {"bad": float("nan")})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == content | {"bad": None}


def test_commands_are_quoted_for_a_shell(job, tmp_path):
    odd = ["student.layers=[1, 3]", "data.path=it's here", 'x="$HOME"', "loss.layers={1: 2}"]
    job("odd", 4.5, more=odd)
    summarize(tmp_path)
    page = (tmp_path / "report.html").read_text()
    commands = [unescape(text) for text in re.findall(r"<pre>(lightning-distill .*?)</pre>", page)]
    assert shlex.split(commands[0]) == [
        "lightning-distill",
        "name=odd",
        "seed=0",
        "common=1",
        *odd,
    ]


def test_plotly_accepts_every_figure(sweep_of_24):
    rows = compare_jobs(sweep_of_24)
    drawn = [
        figures.sizes(rows),
        figures.gaps(rows),
        figures.against(rows),
        curves(rows, VALIDATION),
        parallel_coordinates(rows),
        reliability(rows),
        *(one for _, one in heat_maps(rows)),
    ]
    assert len(drawn) == 8
    for figure in drawn:
        plain = re.sub(r"var\(--[\w-]+\)", "red", json.dumps(figure))
        assert go.Figure(json.loads(plain)).data  # raises for what plotly does not know


def test_a_student_is_drawn_beside_its_baseline_and_label_smoothing(job, tmp_path):
    job("plain", 5.0, alpha=0)
    job("smooth", 4.8, alpha=0, label_smoothing=0.1)
    job("distilled", 4.25)
    _, *kinds = figures.against(compare_jobs(tmp_path))["data"]
    at = {trace["name"]: trace["x"] for trace in kinds}
    assert at["distilled"] == (4.25,)
    assert at["baseline"] == pytest.approx((5.0,))
    assert at["label smoothing"] == pytest.approx((4.8,))


def test_the_heat_map_shows_means_over_seeds(sweep_of_24):
    rows = compare_jobs(sweep_of_24)
    (name, figure), (_, larger) = heat_maps(rows)
    assert name == "student=xs, 0.23 M"
    (cells,), (others,) = figure["data"], larger["data"]
    assert (cells["x"], cells["y"]) == (["1", "2"], ["0", "0.5", "1"])
    two = [r.nll for r in rows if r.name.startswith("student=xs,loss.temperature=2,loss.alpha=0.5")]
    assert cells["z"][1][1] == pytest.approx(sum(two) / 2)
    assert others["z"] != cells["z"]


def test_there_is_no_heat_map_unless_temperature_and_alpha_are_swept(job, tmp_path):
    job("a", 4.3, more=["loss.alpha=1"])
    job("b", 4.4, more=["loss.alpha=0"], alpha=0)
    assert heat_maps(compare_jobs(tmp_path)) == []


def test_a_key_is_shortened_if_its_last_part_is_unique():
    keys = ["loss.alpha", "student.max_steps", "teacher.max_steps", "student"]
    name = "loss.alpha=1,student.max_steps=3,student=xs,layers=[1,3]"
    assert short_name(name, keys) == "alpha=1, student.max_steps=3, student=xs, layers=[1, 3]"


def page_of(folder):
    with redirect_stdout(io.StringIO()):
        summarize(folder)
    page = (folder / "report.html").read_text()
    return re.sub(r"<[^>]+>", " ", page.partition("<body>")[2].partition("</main>")[0])


def test_the_page_says_whether_the_lead_is_significant(job, tmp_path):
    job("good", 4.3)
    job("bad", 4.9)
    assert "is not known" in page_of(tmp_path)
    for seed in (1, 2):
        job("good", 4.3 + seed / 100, seed=seed)
        job("bad", 4.9 + seed / 100, seed=seed)
    assert "more than the noise between seeds" in page_of(tmp_path)


def test_an_unfinished_sweep_lists_what_is_missing_and_shows_the_rest(job, tmp_path):
    job("done", 4.3)
    job("failed", 0, status="failed", error="no memory\nTraceback")
    (job("going", 4.5, status="running") / "job.log").unlink()
    (job("cut off", 4.5) / "results.json").write_text('{"status": "fini')
    shutil.rmtree(job("settingless", 4.4) / ".hydra")
    (job("curveless", 4.6) / "metrics.csv").unlink()
    page = re.sub(r"\s+", " ", page_of(tmp_path))
    assert "Best job" in page
    assert "3 jobs without results" in page
    assert f"failed name=failed no memory {tmp_path / 'failed,seed=0' / 'job.log'}" in page
    assert "at step 120 of 10 no job.log" in page
    assert "results.json cannot be read" in page
    assert "Without a readable metrics.csv: name=curveless." in page
    assert "Missing: .hydra/config.yaml" in page


def test_jobs_that_have_not_started_are_listed(sweep_of_24):
    gone = "loss.alpha=1,loss.temperature=2,seed=1,student=s"
    shutil.rmtree(sweep_of_24 / gone)
    page = page_of(sweep_of_24)
    assert "23 of 24 jobs finished" in page
    assert "student=s loss.temperature=2" in page


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_jobs_is_rejected_with_the_names_of_sweeps(in_process, tmp_path, made):
    folder = tmp_path / "nothing"
    if made:
        folder.mkdir()
    (tmp_path / "sweeps" / "real").mkdir(parents=True)
    (tmp_path / "sweeps" / "real" / "multirun.yaml").touch()
    settings = [f"report.sweep={folder}", f"paths.outputs={tmp_path}"]
    done = in_process("stage=report", *settings, expect=2)
    assert f"report.sweep={folder}" in done.stderr
    assert str(tmp_path / "sweeps" / "real") in done.stderr


def test_a_sweep_of_teachers_only_has_a_page(job, tmp_path):
    folder = job("a", 4.3)
    found = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(found | {"student": None}))
    assert "Teachers only: the best has nll 4.000" in page_of(tmp_path)
