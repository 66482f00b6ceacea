"""The page's top: the best job, what it gained, and what did not finish."""

import shlex
from collections.abc import Sequence
from html import escape
from statistics import mean

from lightning_distill.report.tables import TASK_SCORES, millions, seconds_of, short, teachers
from lightning_distill.sweeps.comparison import Group, Verdict, over_seeds, verdict
from lightning_distill.sweeps.records import Row
from lightning_distill.sweeps.statistics import interval

UNITS = {"nll": "nats", "bits_per_byte": "bits per byte"}
REPEAT = "run the sweep again with <code>seed=0,1,2</code>"


def answer(rows: list[Row]) -> str:
    found = verdict(rows)
    if found is None:
        return f"<section class='answer'><p class='name'>{_nothing(rows)}</p></section>"
    best = found.best
    teacher = best.rows[0].results.get("teacher")
    size = best.mean("parameters")
    part = (
        f" <small>{100 * size / teacher['parameters']:.0f} % of the teacher's</small>"
        if teacher
        else ""
    )
    facts = [
        ("gap to the teacher closed", _mean(best.shares(), 0, 100, " %"), "main"),
        ("nll", _mean(best.scores("nll"), 3), ""),
        *((name, _mean(best.scores(key), digits), "") for key, name, digits in TASK_SCORES),
        ("parameters", f"{millions(size)}{part}", ""),
    ]
    if teacher:
        facts.append(("the teacher's nll", f"{teacher['nll']:.3f}", ""))
    criterion = "nll" if found.measure == "nll" else "bits per byte (tokens differ)"
    return (
        f"<section class='answer'><p class='note'>Best job, by the lowest mean {criterion} over "
        "seeds; chosen on the split that it is measured on</p>"
        f"<p class='name'>{_name(best)}</p>{_facts(facts)}"
        f"{_lead(found)}{_unmeasured(best)}</section>"
    )


def _facts(facts: list[tuple[str, str, str]]) -> str:
    parts = [
        f"<div class='{kind}'><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value, kind in facts
        if value
    ]
    return f"<dl class='facts'>{''.join(parts)}</dl>"


def _nothing(rows: list[Row]) -> str:
    found = teachers(rows)
    if not found:
        return "No job has finished yet."
    best = found[0][0]
    return f"Teachers only: the best has nll {best['nll']:.3f}, {millions(best['parameters'])}."


def _lead(found: Verdict) -> str:
    if found.next is None:
        return "<p>There is no other job with results of its own to compare it with.</p>"
    ahead = f"{found.lead:.2g} {UNITS[found.measure]} ahead of the runner-up, {_name(found.next)}"
    if found.noise is None:
        return (
            f"<p>It is {ahead}. Whether that is more than noise between seeds is not known: "
            f"{REPEAT}.</p>"
        )
    span = f"95&nbsp;% interval {found.lead - found.noise:.3f} to {found.lead + found.noise:.3f}"
    span = span.replace("-", "−")
    if found.is_clear:
        verdict = f"more than the noise between seeds (Welch's t, {span})"
    else:
        verdict = f"<b>not</b> more than the noise between seeds (Welch's t, {span})"
    return f"<p>It is {ahead}: {verdict}.</p>"


def _unmeasured(best: Group) -> str:
    if best.shares() or best.kind != "distilled":
        return ""
    if not best.rows[0].results.get("teacher"):
        return "<p>No gap is told, as the teacher's own numbers are not known.</p>"
    return (
        "<p>No gap is told, as no finished job trains the same student for as many steps "
        "without a teacher: add <code>loss.alpha=0</code>.</p>"
    )


def _name(group: Group) -> str:
    seeds = f" <small class='note'>({len(group.rows)} seeds)</small>" if len(group.rows) > 1 else ""
    return escape(short(group.name, group.rows[0].settings)) + seeds


def _mean(values: Sequence[float], digits: int, scale: float = 1, unit: str = "") -> str:
    """With half its confidence interval, where seeds repeat."""
    if not values:
        return ""
    text = f"{scale * mean(values):,.{digits}f}{unit}"
    if width := interval(values):
        text += f" <small>± {scale * width:.{digits}f}</small>"
    return text


def over_seeds_table(rows: list[Row]) -> str:
    """Empty where no setting has more than one seed."""
    groups = over_seeds(rows)
    if all(len(group.rows) < 2 for group in groups):
        return ""
    known = [one for one in TASK_SCORES if any(group.scores(one[0]) for group in groups)]
    names = [name for _, name, _ in known]
    heads = ("setting", "nll", "gap closed", *names, "agreement", "seeds", "seconds")
    lines = []
    for group in groups:
        cells = [
            _mean(group.scores("nll"), 3),
            _mean(group.shares(), 0, 100, " %"),
            *(_mean(group.scores(key), digits) for key, _, digits in known),
            _mean(group.scores("teacher_agreement"), 2),
            str(len(group.rows)),
            seconds_of(group.rows),
        ]
        plain = "".join(f"<td>{cell}</td>" for cell in cells)
        name = escape(short(group.name, group.rows[0].settings))
        lines.append(f"<tr><td class='text'>{name}</td>{plain}</tr>")
    return (
        "<p class='note'>Means, ± half the 95&nbsp;% confidence interval (Student's t); seconds ± "
        "standard deviation. The best first.</p><div class='wide'><table><thead><tr>"
        + "".join(f"<th{' class=text' if h == 'setting' else ''}>{h}</th>" for h in heads)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def unfinished(rows: list[Row], absent: list[list[str]]) -> str:
    """Every job without results: what happened, and where to read on."""
    ended = [row for row in rows if row.why]
    if not ended and not absent:
        return ""
    parts = []
    for row in ended:
        log = row.folder / "job.log"
        where = f"<code>{escape(str(log))}</code>" if log.exists() else "no job.log"
        name = escape(short(row.name, row.settings))
        parts.append(
            f"<dt><b class='bad'>{escape(str(row.results['status']))}</b> {name}</dt>"
            f"<dd>{escape(row.why)}<br><span class='note'>{where}</span></dd>"
        )
    if absent:
        lines = "".join(f"<li>{escape(shlex.join(job))}</li>" for job in absent)
        parts.append(
            f"<dt><b class='bad'>not begun</b> {_jobs(len(absent))} of the sweep's command</dt>"
            f"<dd><details><summary>without a folder yet</summary><ul>{lines}</ul></details></dd>"
        )
    return (
        f"<section id='unfinished'><h2>{_jobs(len(ended) + len(absent))} without results</h2>"
        "<p class='note'>The sweep's command again goes on with these, and skips the others.</p>"
        f"<dl class='unfinished'>{''.join(parts)}</dl></section>"
    )


def _jobs(count: int) -> str:
    return f"{count} job{'s' * (count > 1)}"
