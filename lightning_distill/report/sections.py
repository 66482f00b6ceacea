"""The page's tables, samples and commands."""

import math
import shlex
from html import escape
from typing import Any

from omegaconf import OmegaConf

from lightning_distill.metrics.names import is_metric
from lightning_distill.report.tables import TASK_SCORES, duration, records, short, teachers
from lightning_distill.sweeps.comparison import influence, measure_of, over_seeds, verdict
from lightning_distill.sweeps.records import Row

MEANING = {
    "perplexity": "exp(nll)",
    "accuracy": "share of examples whose class is the likeliest",
    "f1": "mean of the classes' F1",
    "corrected_omitted_accuracy": "recognised of the omitted class, with its bias corrected",
    "bleu": "of what is written, against the references (sacrebleu)",
    "chrf": "of what is written, against the references (sacrebleu)",
    "rouge_l": "of what is written, against the references",
}
# What the table of jobs shows: the column of results.csv, its head, digits, factor, unit, meaning.
COLUMNS = (
    ("student.nll", "nll", 3, 1, "", "nats, on the held-out test split"),
    *((f"student.{key}", name, digits, 1, "", MEANING[key]) for key, name, digits in TASK_SCORES),
    ("gap_closed", "gap closed", 1, 100, " %", "(baseline − student) / (baseline − teacher)"),
    ("gap_closed_best_baseline", "… of best", 1, 100, " %", "from the best without a teacher"),
    ("gain_over_baseline", "over baseline", 3, 1, "", "nll gained over plain training"),
    ("gain_over_label_smoothing", "over smoothing", 3, 1, "", "nll gained over smoothed labels"),
    (
        "student.teacher_agreement",
        "agreement",
        3,
        1,
        "",
        "how often both favour the same one",
    ),
    ("student.teacher_kl", "KL(p ‖ q)", 3, 1, "", "from the teacher's distribution"),
    ("student.calibration_error", "ECE", 3, 1, "", "expected calibration error"),
    ("student.parameters", "size, M", 3, 1e-6, "", "millions of parameters of the student"),
    ("teacher.nll", "teacher's nll", 3, 1, "", "of the teacher"),
    ("cost.student_seconds", "seconds", 0, 1, "", "of training the student"),
    ("cost.student_tokens_per_second", "tokens/s", 0, 1, "", "target tokens of the student"),
    ("cost.peak_memory_mb", "memory, MB", 0, 1, "", "at most, while the student trains"),
    ("student.speed.tokens_per_second", "writes, tokens/s", 0, 1, "", "of the student, finished"),
    ("student.speed.first_token_seconds", "first token", 1, 1e3, " ms", "of the student, finished"),
    ("student.speed.bytes", "weights", 1, 1e-6, " MB", "of the student"),
)
# Left out where they say no more than another.
ONLY_IF_OTHER = {"gap_closed_best_baseline": "gap_closed"}
ONLY_IF_VARIED = ("teacher.nll",)


def jobs_table(rows: list[Row]) -> str:
    """A row a job, with the numbers of results.csv; the best first."""
    found = verdict(rows)
    best = {id(row) for row in found.best.rows} if found else set()
    lines = list(zip(rows, records(rows), strict=True))
    lines.sort(key=lambda line: math.inf if line[0].nll is None else line[0].nll)
    columns = [*COLUMNS, *_tasks([record for _, record in lines])]
    shown = [column for column in columns if _worth_showing(column[0], [r for _, r in lines])]
    keys = list(rows[0].settings)
    heads = [(key, short(f"{key}=", keys).rstrip("="), key) for key in keys]
    if not keys:
        heads = [("job", "job", "the folder")]
    text = (
        heads if not any(row.why for row in rows) else [*heads, ("status", "status", "of the job")]
    )
    head = "".join(
        f"<th class='text'><button title='{escape(meaning)}'>{escape(name)}</button></th>"
        for _, name, meaning in text
    ) + "".join(
        f"<th><button title='{escape(meaning)}'>{escape(name)}</button></th>"
        for _, name, _, _, _, meaning in shown
    )
    body = []
    for row, record in lines:
        cells = "".join(_text_cell(key, record) for key, _, _ in text)
        cells += "".join(_number_cell(row, record, *column[:5]) for column in shown)
        kind = " class='best'" if id(row) in best else ""
        body.append(f"<tr{kind} data-name='{escape(row.name)}'>{cells}</tr>")
    return (
        "<p class='note'>A click on a column's head sorts by it. The best is marked.</p>"
        "<div class='filter'><input type='search' data-filters='table-jobs' "
        "placeholder='filter, as in alpha=0.5 student=s' aria-label='filter the jobs'>"
        "<output class='note'></output></div>"
        f"<div class='wide'><table class='sorts' id='table-jobs'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _tasks(lines: list[dict[str, Any]]) -> list[tuple[str, str, int, float, str, str]]:
    """A column for each metric of lm-eval's tasks."""
    prefix = "student.tasks."
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(prefix))
    found: list[tuple[str, str, int, float, str, str]] = []
    for key in filter(is_metric, keys):
        of_teachers = key.replace("student", "teacher", 1)
        theirs = sorted({line[of_teachers] for line in lines if of_teachers in line})
        told = f"; the teacher's: {', '.join(f'{value:.3f}' for value in theirs)}" if theirs else ""
        name = " ".join(key.removeprefix(prefix).rsplit(".", 1))
        found.append((key, name, 3, 1, "", f"lm-eval{told}"))
    return found


def _worth_showing(key: str, lines: list[dict[str, Any]]) -> bool:
    values = [line.get(key) for line in lines]
    if key in ONLY_IF_VARIED and len({line.get("student.nll") for line in lines}) > 1:
        return len(set(values) - {None}) > 1
    other = ONLY_IF_OTHER.get(key, "")
    return any(map(_is_number, values)) and any(line.get(other) != line.get(key) for line in lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _text_cell(key: str, record: dict[str, Any]) -> str:
    value = str(record.get(key, ""))
    bad = " bad" if key == "status" and value != "finished" else ""
    return f"<td class='text{bad}' data-column='{escape(key)}'>{escape(value)}</td>"


def _number_cell(
    row: Row, record: dict[str, Any], key: str, _: str, digits: int, factor: float, unit: str
) -> str:
    value, column = record.get(key), escape(key)
    if value is None or not _is_number(value):
        return f"<td data-column='{column}'></td>"
    shown = f"{factor * value:,.{digits}f}{unit}"
    if key == "cost.student_seconds" and row.took_over:
        shown = f"<span title='the results of {escape(str(row.results['same_as']))}'>reused</span>"
    return f"<td data-column='{column}' data-value='{value!r}'>{shown}</td>"


def influences(rows: list[Row]) -> str:
    found = influence(rows)
    if all(share is None for _, share in found):
        return ""
    measure = measure_of(rows).replace("_", " ")
    bars = "".join(
        f"<span>{escape(key)}</span>"
        f"<span class='bar'><i style='width:{100 * (share or 0):.1f}%'></i></span>"
        f"<span>{'not to be told' if share is None else f'{share:.0%}'}</span>"
        for key, share in found
    )
    note = (
        f"η²: how much of the variance of {measure} between jobs lies between the means at each "
        "setting's values. What settings do only together counts for none of them."
    )
    return f"<p class='note'>{note}</p><div class='bars'>{bars}</div>"


def cost(rows: list[Row]) -> str:
    students = sum(row.cost("student_seconds") for row in rows)
    parts = [
        ("teachers", sum(seconds for _, seconds in teachers(rows))),
        ("transfer", sum(row.cost("transfer_seconds") for row in rows)),
        ("students", students),
    ]
    total = sum(seconds for _, seconds in parts)
    tokens = sum(r.cost("student_seconds") * r.cost("student_tokens_per_second") for r in rows)
    peak = max((row.cost("peak_memory_mb") for row in rows), default=0)
    if not any(row.results.get("cost") for row in rows):
        return ""
    cells = [(name, duration(seconds)) for name, seconds in parts]
    if teachers(rows) and not parts[0][1]:
        cells[0] = ("teachers", "reused")
    cells.append(("in all", duration(total)))
    if students:
        cells.append(("tokens a second, students", f"{tokens / students:,.0f}"))
    if peak:
        cells.append(("peak memory", f"{peak:,.0f} MB"))
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    over = sum(row.took_over for row in rows)
    taken = f" {over} jobs took over the results of others with the same settings." if over else ""
    return (
        f"<dl class='facts'>{facts}</dl><p class='note'>Seconds of computing, added up over jobs. "
        f"What was there already cost nothing.{taken}</p>"
    )


def samples(rows: list[Row]) -> str:
    """For each prompt how the teacher, the best student and the best without a teacher go on."""
    first = [row for group in over_seeds(rows) for row in group.rows]
    alone = [row for row in first if row.is_baseline]
    ordered = [*first[:1], *alone[:1], *first, *rows]
    by_prompt: dict[str, dict[str, str]] = {}
    for row in ordered:
        for sample in row.samples:
            texts = by_prompt.setdefault(str(sample["prompt"]), {})
            if "teacher" in sample:
                texts.setdefault("teacher", str(sample["teacher"]))
            texts.setdefault(short(row.name, row.settings), str(sample["student"]))
    parts = []
    for prompt, texts in by_prompt.items():
        lines = [
            f"<dt>{escape(who)}</dt><dd class='verbatim'>{escape(text)}</dd>"
            for who, text in sorted(texts.items(), key=lambda one: one[0] != "teacher")
        ]
        top, rest = "".join(lines[:3]), "".join(lines[3:])
        more = f"<details><summary class='note'>{len(lines) - 3} others</summary>"
        parts.append(
            f"<h3 class='verbatim'>{escape(prompt)} …</h3><dl class='samples'>{top}</dl>"
            + (f"{more}<dl class='samples'>{rest}</dl></details>" if rest else "")
        )
    return "".join(parts)


def commands(rows: list[Row], command: list[str]) -> str:
    parts = []
    if command:
        parts.append(f"<p>The sweep:</p>{_command(['-m', *command])}")
    for row in rows:
        state = "" if row.nll is not None else f" ({row.results['status']})"
        why = str(row.results.get("error") or "")
        parts.append(
            f"<details><summary>{escape(short(row.name, row.settings) + state)}</summary>"
            + _command(row.results["overrides"])
            + (f"<pre>{escape(why)}</pre>" if why else "")
            + f"<p class='note verbatim'>{escape(str(row.folder))}</p>"
            + (f"<pre>{escape(OmegaConf.to_yaml(row.cfg))}</pre>" if row.cfg else "")
            + (
                f"<p class='bad'>Missing: {escape(', '.join(row.missing))}</p>"
                if row.missing
                else ""
            )
            + "</details>"
        )
    return "".join(parts)


def _command(overrides: list[str]) -> str:
    text = escape(shlex.join(["lightning-distill", *overrides]))
    return f"<div class='command'><pre>{text}</pre><button>copy</button></div>"
