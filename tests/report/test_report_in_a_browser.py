"""The report's page in a real browser, on screen and on paper."""

import base64
import csv
import ctypes
import io
import json
import re
import shutil
import time
from contextlib import redirect_stdout

import pypdfium2
import pytest
from browser import CHROMIUM, Browser
from pypdfium2 import raw

from lightning_distill.report.summarize import summarize

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def read_csv(folder):
    with (folder / "results.csv").open(newline="") as lines:
        return {row["job"]: row for row in csv.DictReader(lines)}


def alpha(row):
    return float(row["loss.alpha"])


def nll(row):
    return float(row["student.nll"])


def circles_of(sheet):
    """The bounds of each circle filled with #0f6e6b, of distilled students, and the page's size."""
    for path in sheet.get_objects(filter=[raw.FPDF_PAGEOBJ_PATH]):
        red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
        raw.FPDFPageObj_GetFillColor(path, red, green, blue, alpha)
        fill, stroke = ctypes.c_int(), ctypes.c_int()
        raw.FPDFPath_GetDrawMode(path, fill, stroke)
        x0, y0, x1, y1 = path.get_bounds()
        is_round = 4 < x1 - x0 < 14 and x1 - x0 == pytest.approx(y1 - y0, abs=0.5)
        color = (red.value, green.value, blue.value)
        if fill.value and color == (0x0F, 0x6E, 0x6B) and is_round:
            yield x0, y0, x1, y1, sheet.get_size()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(browser, sweep_of_24):
    """The report of 24 jobs, in the browser."""
    with redirect_stdout(io.StringIO()):
        summarize(sweep_of_24)
    browser.complaints.clear()
    browser.seconds = browser.open(sweep_of_24 / "report.html")
    yield browser
    assert browser.complaints == []


COLUMN = """
[...document.querySelectorAll('#table-jobs .jobs tr')].filter((row) => !row.hidden)
  .map((row) => row.querySelector('[data-column="NAME"]').dataset.value)
"""
CELLS = """
Object.fromEntries([...document.querySelectorAll('#table-jobs .jobs tr')].map((row) =>
  [row.dataset.name, Object.fromEntries([...row.cells].map((cell) =>
    [cell.dataset.column, [cell.dataset.value ?? cell.textContent, cell.textContent]]))]))
"""
DRAWN = """
(async () => {
  const boxes = [...document.querySelectorAll('[data-figure]')];
  for (const box of boxes) {
    box.scrollIntoView();
    for (let n = 0; n < 600 && !box.querySelector('.main-svg'); n++)
      await new Promise((done) => setTimeout(done, 50));
  }
  return boxes.filter((box) => box.querySelector('.main-svg')).length;
})()
"""


@pytest.mark.slow
@in_browser
class TestInABrowser:
    def test_the_page_of_24_jobs_loads_within_seconds(self, page):
        assert page.seconds < 2 * 5  # on a machine that runs other tests

    def test_its_numbers_equal_those_of_the_csv(self, page, sweep_of_24):
        table, shown = read_csv(sweep_of_24), page.run(CELLS)
        assert table.keys() == shown.keys()
        for name, cells in shown.items():
            for column, (value, text) in cells.items():
                assert value == table[name][column]
                if column in ("student.nll", "student.teacher_agreement"):
                    assert text == f"{float(value):.3f}"

    def test_a_click_sorts_numerically_and_a_second_click_reverses(self, page):
        heads = "[...document.querySelectorAll('#table-jobs th button')]"
        sort = heads + ".find((head) => head.innerText == {!r}).click()"
        for column, name in (("cost.student_seconds", "seconds"), ("student.nll", "nll")):
            page.run(sort.format(name))
            up = page.run(COLUMN.replace("NAME", column))
            page.run(sort.format(name))
            down = page.run(COLUMN.replace("NAME", column))
            assert [float(v) for v in up] == sorted(float(v) for v in up)
            assert [float(v) for v in down] == sorted((float(v) for v in up), reverse=True)

    def test_the_keyboard_sorts_too(self, page):
        page.run("document.querySelectorAll('#table-jobs th button')[0].focus()")
        page.press("Enter")
        assert page.run("document.querySelector('#table-jobs th').ariaSort") == "ascending"

    def test_the_filter_compares_settings_and_numbers(self, page, sweep_of_24):
        """Numbers as they are shown: the gap closed in percent."""
        filters = {
            "student=xs ALPHA=0.5": lambda row: row["student"] == "xs" and alpha(row) == 0.5,
            "alpha=0": lambda row: alpha(row) == 0,
            "loss.alpha!=0 seed=1": lambda row: alpha(row) > 0 and row["seed"] == "1",
            "nll<4.6": lambda row: nll(row) < 4.6,
            "gap_closed>=50": lambda row: float(row["gap_closed"] or -1) >= 0.5,
            "size>1": lambda row: float(row["student.parameters"]) > 1e6,
            "baseline": lambda row: row["method"] == "baseline",
            "method=distilled nll>4.8": lambda row: alpha(row) > 0 and nll(row) > 4.8,
            "nothing<like": lambda row: False,
        }
        table = read_csv(sweep_of_24)
        for words, keeps in filters.items():
            count, shown = page.run(
                "(() => { const input = document.querySelector('input[type=search]');"
                f"input.value = {words!r}; input.dispatchEvent(new Event('input'));"
                "return [document.querySelector('.filter output').value,"
                "[...document.querySelectorAll('#table-jobs .jobs tr')]"
                ".filter((row) => !row.hidden).map((row) => row.dataset.name)] })()"
            )
            expected = {name for name, row in table.items() if keeps(row)}
            assert set(shown) == expected, words
            assert count == f"{len(expected)} of 24 jobs"

    def test_every_figure_is_drawn(self, page):
        assert page.run(DRAWN) == page.run("document.querySelectorAll('[data-figure]').length") == 9

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [390, 1440])
    def test_it_fits_and_is_legible(self, page, sweep_of_24, width, dark):
        page.open(sweep_of_24 / "report.html", width, dark=dark)
        page.run(DRAWN)
        assert page.run("document.documentElement.scrollWidth") <= width
        of_body = "getComputedStyle(document.body)[{!r}]"
        ink, paper = (page.run(of_body.format(key)) for key in ("color", "backgroundColor"))
        assert contrast(ink, paper) > 10
        assert (luminance(ink) > luminance(paper)) is dark
        for what in (".note", "a", ".js-plotly-plot .xtick text", ".facts .main dd", ".facts dt"):
            of = "'fill'" if "text" in what else "'color'"
            colour = page.run(f"getComputedStyle(document.querySelector({what!r}))[{of}]")
            assert contrast(colour, paper) > 4.5, what

    def test_an_unfinished_sweep_fits_a_phone(self, page, sweep_of_24):
        one, two, three, *_ = sorted(sweep_of_24.glob("loss*"))
        shutil.rmtree(one)
        (two / "metrics.csv").unlink()
        long = {"status": "failed", "error": "x" * 500, "overrides": ["data.path=" + "y" * 200]}
        (three / "results.json").write_text(json.dumps(long))
        with redirect_stdout(io.StringIO()):
            summarize(sweep_of_24)
        page.open(sweep_of_24 / "report.html", 390)
        assert page.run("document.documentElement.scrollWidth") == 390
        assert "x" * 500 in page.run("document.querySelector('#unfinished').innerText")

    def test_no_column_is_cut_off(self, page):
        """At 1440, columns that do not fit are hidden, which their list says."""
        overflow = "(box => box.scrollWidth - box.clientWidth)"
        table = "document.querySelector('#table-jobs').parentElement"
        assert page.run(f"{overflow}({table})") <= 0
        boxes = "[...document.querySelectorAll('[data-columns] input')]"
        hidden = page.run(f"{boxes}.filter((box) => !box.checked).map((box) => box.value)")
        assert hidden == ["cost.student_tokens_per_second", "cost.peak_memory_mb"]
        assert "2 hidden" in page.run("document.querySelector('.columns summary').innerText")
        page.run(f"{boxes}.forEach((box) => box.checked || box.click())")
        page.run(f"{table}.scrollLeft = 200")
        left = "document.querySelector('#table-jobs .jobs td').getBoundingClientRect().left"
        assert page.run(left) == page.run(f"{table}.getBoundingClientRect().left")

    @pytest.mark.parametrize("form", ["markdown", "latex"])
    def test_the_table_is_copied_as_it_is_shown(self, page, sweep_of_24, form):
        page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        page.run(f"document.querySelector('[data-format={form}]').click()")
        time.sleep(0.2)
        lines = page.run("navigator.clipboard.readText()").splitlines()
        if form == "markdown":
            head, rule, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
            assert set(rule) == {"---", "---:"}
        else:
            assert lines[0].startswith(r"\begin{tabular}{lllll")
            head, *rows = (
                [c.strip() for c in line.removesuffix(r"\\").split(" & ")]
                for line in lines
                if line.endswith(r"\\")
            )
        assert len(rows) == 1 + 24
        assert {len(row) for row in rows} == {len(head)}
        assert rows[0][0] == "teacher"
        nll = head.index("nll")
        expected = sorted(float(row["student.nll"]) for row in read_csv(sweep_of_24).values())
        assert [float(row[nll]) for row in rows[1:]] == pytest.approx(expected, abs=5e-4)

    def test_two_jobs_show_the_settings_that_differ(self, page):
        page.run(
            "(() => { const [one, two] = document.querySelectorAll('[data-pairs] select');"
            "const at = (name) => [...one.options].findIndex((o) => o.text === name);"
            "one.value = at('student=xs, temperature=1, alpha=0.5, seed=0');"
            "two.value = at('student=s, temperature=2, alpha=0.5, seed=0');"
            "two.dispatchEvent(new Event('change')) })()"
        )
        rows = page.run(
            "[...document.querySelectorAll('#pairs-table tbody tr')].map((row) =>"
            "[...row.cells].map((cell) => cell.textContent))"
        )
        settings = {row[0]: row[1:] for row in rows if "." in row[0] or row[0] == "seed"}
        assert settings == {"student.hidden_size": ["64", "128"], "loss.temperature": ["1", "2"]}
        assert "nll" in [row[0] for row in rows]

    def test_curves_change_their_axis_and_colors(self, page, sweep_of_24):
        page.run(DRAWN)
        box = "document.querySelector('[data-figure=figure-curves-0]')"
        choose = (
            "(() => {{ const select = document.querySelector('[data-curves] [name={}]');"
            "select.value = {!r}; select.dispatchEvent(new Event('change')) }})()"
        )
        steps = page.run(f"{box}.data[0].x")
        page.run(choose.format("axis", "tokens"))
        assert page.run(f"{box}.data[0].x") == [512 * step for step in steps]
        assert page.run(f"{box}.layout.xaxis.title.text") == "tokens"
        page.run(choose.format("color", "loss.alpha"))
        legend = f"{box}.data.filter((trace) => trace.showlegend).map((trace) => trace.name)"
        assert page.run(legend) == ["loss.alpha=0", "loss.alpha=0.5", "loss.alpha=1"]
        colors = page.run(f"{box}.data.map((trace) => [trace.name, trace.line.color])")
        assert len({tuple(pair) for pair in colors}) == 3

    @pytest.mark.parametrize("form", ["svg", "png"])
    def test_a_figure_is_saved(self, page, tmp_path, form):
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.run(DRAWN)
        page.run(
            "[...document.querySelectorAll('[data-saves=figure-gaps] button')]"
            f".find((button) => button.textContent === '{form.upper()}').click()"
        )
        file = tmp_path / f"figure-gaps.{form}"
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            page.run("new Promise((done) => setTimeout(done, 100))")
        assert file.read_bytes()[:4] == (b"<svg" if form == "svg" else b"\x89PNG")

    def test_each_point_of_a_figure_is_inside_the_page_of_its_pdf(self, page):
        """Points are circles in the color of distilled students, which else only legends have."""
        points = page.run(
            "['gaps', 'against', 'sizes', 'calibration'].map((name) => JSON.parse("
            "document.getElementById(`figure-${name}`).textContent).data"
            ".filter((trace) => trace.marker?.color === 'var(--accent)')"
            ".reduce((sum, trace) => sum + trace.x.length, 0))"
        )
        assert points == [8, 8, 8, 3]
        legends = 3  # of all but the gaps
        pdf = page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
        document = pypdfium2.PdfDocument(base64.b64decode(pdf))
        texts = "".join(sheet.get_textpage().get_text_range() for sheet in document)
        circles = [box for sheet in document for box in circles_of(sheet)]
        assert len(circles) == sum(points) + legends
        for x0, y0, x1, y1, (width, height) in circles:
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
        for label in ("gap closed (%)", "perplexity", "confidence", "Glossary"):
            assert label in texts

    def test_the_copy_button_copies_the_command(self, page):
        page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        page.run("document.querySelector('.command button').click()")
        time.sleep(0.2)
        command = page.run("navigator.clipboard.readText()")
        assert command == "lightning-distill -m student=xs,s loss.temperature=1,2 " + (
            "loss.alpha=0,0.5,1 seed=0,1"
        )

    def test_html_in_names_is_text_in_figures(self, page, job, tmp_path):
        name = "<img src=x onerror=document.title=1><b>bold</b></script>"
        job(name, 4.5, sample="<script>document.title=2</script>")
        job("plain", 5.0, alpha=0)
        with redirect_stdout(io.StringIO()):
            summarize(tmp_path)
        page.open(tmp_path / "report.html")
        page.run(DRAWN)
        assert page.run("document.title") == tmp_path.name
        assert page.run("document.querySelectorAll('img').length") == 0
        labels = "[...document.querySelectorAll('.ytick text')].map((t) => t.textContent).join()"
        assert "<b>bold</b></script>" in page.run(labels)
        shown = page.run(
            "(() => { const box = document.querySelector('[data-figure=figure-gaps]');"
            "const at = box.data[0].y.findIndex((name) => name.includes('bold'));"
            "Plotly.Fx.hover(box, [{curveNumber: 0, pointNumber: at}]);"
            "return box.querySelector('.hoverlayer').textContent })()"
        )
        assert name in shown


def luminance(colour):
    """Relative, as the accessibility guidelines define it."""
    parts = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
