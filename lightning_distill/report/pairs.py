"""What the page needs to set two jobs side by side: their scores, and the settings that differ."""

from typing import Any

from lightning_distill.report.formatting import short_name
from lightning_distill.report.resolved import flat_settings, resolved
from lightning_distill.sweeps.records import JobRecord


def pairs(jobs: list[JobRecord], table: dict[str, Any]) -> dict[str, Any] | None:
    """table: of `jobs_table`, whose scores are shown. None with fewer than two jobs."""
    if len(jobs) < 2:
        return None
    settings = [flat_settings(resolved(job)) for job in jobs]
    keys = dict.fromkeys(key for one in settings for key in one)
    varying = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    scores = {
        row["name"]: {
            column.heading: cell.text
            for column, cell in zip(table["columns"], row["cells"], strict=True)
        }
        for row in table["rows"]
    }
    return {
        "jobs": [
            {
                "name": short_name(job.name, job.swept),
                "scores": scores[job.name],
                "settings": {key: one.get(key, "—") for key in varying},
            }
            for job, one in sorted(
                zip(jobs, settings, strict=True), key=lambda pair: list(scores).index(pair[0].name)
            )
        ]
    }
