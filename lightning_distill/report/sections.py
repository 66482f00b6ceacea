"""What the page's sections show besides figures and tables: costs, samples and commands."""

import shlex
from typing import Any

import yaml

from lightning_distill.report.formatting import duration, short_name
from lightning_distill.report.tables import teachers
from lightning_distill.sweeps.comparison import measure_of, ranked_jobs, variance_explained
from lightning_distill.sweeps.records import JobRecord


def variance_bars(jobs: list[JobRecord]) -> dict[str, Any] | None:
    shares = variance_explained(jobs)
    if all(share is None for _, share in shares):
        return None
    return {"metric": measure_of(jobs).replace("_", " "), "shares": shares}


def cost(jobs: list[JobRecord]) -> dict[str, Any] | None:
    if not any(job.results.get("cost") for job in jobs):
        return None
    teacher_seconds = teachers(jobs)
    seconds = {
        "teachers": sum(seconds for _, seconds in teacher_seconds),
        "transfer": sum(job.cost("transfer_seconds") for job in jobs),
        "students": sum(job.cost("student_seconds") for job in jobs),
    }
    facts = {name: duration(value) for name, value in seconds.items()}
    if teacher_seconds and not seconds["teachers"]:
        facts["teachers"] = "reused"
    facts["in all"] = duration(sum(seconds.values()))
    if seconds["students"]:
        tokens = sum(j.cost("student_seconds") * j.cost("student_tokens_per_second") for j in jobs)
        facts["tokens per second, students"] = f"{tokens / seconds['students']:,.0f}"
    if peak := max(job.cost("peak_memory_mb") for job in jobs):
        facts["peak memory"] = f"{peak:,.0f} MB"
    return {"facts": facts, "reused": sum(job.reused for job in jobs)}


def samples(jobs: list[JobRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each prompt the texts of the teacher, the best student, the best baseline, the others."""
    ranked = ranked_jobs(jobs)
    baselines = [job for job in ranked if job.is_baseline]
    texts: dict[str, dict[str, str]] = {}
    for job in [*ranked[:1], *baselines[:1], *ranked, *jobs]:
        for sample in job.samples:
            by_model = texts.setdefault(str(sample["prompt"]), {})
            if "teacher" in sample:
                by_model.setdefault("teacher", str(sample["teacher"]))
            by_model.setdefault(short_name(job.name, job.swept), str(sample["student"]))
    return [
        (prompt, sorted(by_model.items(), key=lambda one: one[0] != "teacher"))
        for prompt, by_model in texts.items()
    ]


def commands(jobs: list[JobRecord], sweep: list[str]) -> dict[str, Any]:
    """The commands of the sweep and of each job, with the job's settings."""
    return {
        "sweep": _command(["-m", *sweep]) if sweep else "",
        "jobs": [
            {
                "job": job,
                "command": _command(job.results["overrides"]),
                "error": str(job.results.get("error") or ""),
                "config": yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True)
                if job.config
                else "",
            }
            for job in jobs
        ],
    }


def _command(overrides: list[str]) -> str:
    return shlex.join(["lightning-distill", *overrides])


def differences(jobs: list[JobRecord]) -> dict[str, Any] | None:
    """Where the best student and its teacher differ most; None where no job has recorded it."""
    ranked = ranked_jobs(jobs)
    for job in sorted(ranked, key=lambda job: job.is_baseline):
        if job.predictions.get("differences"):
            return {"job": job, **job.predictions["differences"]}
    return None
