"""What the page needs to set two jobs side by side: their scores, and the settings that differ."""

from typing import Any

from lightning_distill.report.formatting import short_name
from lightning_distill.sweeps.records import JobRecord, varying_settings

UNSET = "—"  # in place of null, and of a setting that a job lacks


def pairs(
    jobs: list[JobRecord], settings: list[dict[str, Any]], table: dict[str, Any]
) -> list[dict[str, Any]]:
    """A name, scores and settings for each job, in the order of `table`; empty for a single job.

    settings: of each job, resolved. table: of `jobs_table`, whose scores are shown.
    """
    if len(jobs) < 2:
        return []
    varying = varying_settings(settings)
    index = {id(job): number for number, job in enumerate(jobs)}
    return [
        {
            "name": short_name(row["name"], row["job"].swept),
            "scores": {
                column.heading: cell.text
                for column, cell in zip(table["columns"], row["cells"], strict=True)
            },
            "settings": {k: _text(v[index[id(row["job"])]]) for k, v in varying.items()},
        }
        for row in table["rows"]
    ]


def _text(value: Any) -> str:
    return UNSET if value is None else str(value)
