"""Comparison of a sweep's jobs: with baselines, across seeds, and by swept setting."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from lightning_distill.storage.artifacts import key_of
from lightning_distill.sweeps.job_key import learns_from_labels
from lightning_distill.sweeps.records import JobRecord, read_jobs
from lightning_distill.sweeps.statistics import mean_difference

# The student's settings that say how long it trains, and which of its weights are kept.
LENGTH = ("max_steps", "epochs", "keep", "stop_after")


def compare_jobs(*sweeps: Path) -> list[JobRecord]:
    """All jobs below these folders, each compared with the baselines among them."""
    jobs = read_jobs(*sweeps)
    scored = [job for job in jobs if job.bits_per_byte_or_nll is not None and job.config]
    if not any(job.is_baseline for job in scored):  # all students start as parts of their teacher
        for job in scored:
            job.is_part_baseline = learns_from_labels(job.config)
    plain = [job for job in scored if job.method == "baseline"]
    smoothed = [job for job in scored if job.method == "label smoothing"]
    for job in scored:
        baseline = _best(plain, _training_key, job)
        if job.method == "distilled":
            best_baseline = _best([*plain, *smoothed], _student_key, job)
            job.gap_closed = _gap_closed(baseline, job)
            job.gap_closed_best_baseline = _gap_closed(best_baseline, job)
            job.gain_over_label_smoothing = _gain(_best(smoothed, _training_key, job), job)
        if job.method != "baseline":
            job.gain_over_baseline = _gain(baseline, job)
    return jobs


def _best(
    candidates: list[JobRecord], key: Callable[[JobRecord], str], job: JobRecord
) -> float | None:
    """The lowest bits per byte among the candidates with the same key as `job`."""
    same = (c.bits_per_byte_or_nll for c in candidates if key(c) == key(job))
    return min((score for score in same if score is not None), default=None)


def _gap_closed(baseline: float | None, job: JobRecord) -> float | None:
    """(baseline − student) / (baseline − teacher), in bits per byte or nll."""
    student, teacher = job.bits_per_byte_or_nll, job.results.get("teacher")
    if baseline is None or student is None or not teacher:
        return None
    gap = baseline - teacher.get("bits_per_byte", teacher["nll"])
    return (baseline - student) / gap if gap > 0 else None


def _gain(baseline: float | None, job: JobRecord) -> float | None:
    """baseline − student, in nats per token of the student."""
    student = job.bits_per_byte_or_nll
    if baseline is None or not student or job.nll is None:
        return None
    return (baseline - student) * job.nll / student


def _training_key(job: JobRecord) -> str:
    """Equal for jobs that differ only in what the student gets from its teacher."""
    training = {key: job.config[key] for key in ("optimizer", "schedule", "trainer")}
    length = {key: job.config["student"].get(key) for key in LENGTH}
    return key_of(training | length | {"of": _student_key(job)})


def _student_key(job: JobRecord) -> str:
    """Equal for jobs whose student has the same size, data and seed, however it was trained."""
    start = ("initialize", "layers", "hidden_size", "num_hidden_layers", "num_attention_heads")
    training = (*LENGTH, *start, "max_position_embeddings")
    student = {k: v for k, v in job.config["student"].items() if k not in training}
    student["parameters"] = (job.results.get("student") or {}).get("parameters")
    num_blocks = job.config["transfer"].get("num_blocks")
    data = {"data": job.config["data"], "num_blocks": num_blocks}
    return key_of({"student": student, "seed": job.config["seed"], **data})


@dataclass
class SeedGroup:
    """Jobs that differ only in their seed."""

    name: str
    jobs: list[JobRecord]

    def scores(self, key: str) -> list[float]:
        return [score for job in self.jobs if (score := job.score(key)) is not None]

    def mean(self, key: str) -> float:
        return mean(self.scores(key))

    def gaps_closed(self) -> list[float]:
        return [job.gap_closed for job in self.jobs if job.gap_closed is not None]

    @property
    def method(self) -> str:
        return self.jobs[0].method

    @property
    def job_keys(self) -> set[str]:
        return {_job_key(job) for job in self.jobs}


def _job_key(job: JobRecord) -> str:
    return str(job.results.get("key", job.name))


def measure_of(jobs: list[JobRecord]) -> str:
    """The metric that ranks these jobs: `nll`, or `bits_per_byte` if their tokens differ."""
    ratios = [
        job.bits_per_byte_or_nll / job.nll
        for job in jobs
        if job.nll and job.bits_per_byte_or_nll is not None
    ]
    same_tokens = not ratios or max(ratios) - min(ratios) < 1e-6 * max(ratios)
    return "nll" if same_tokens else "bits_per_byte"


def group_by_setting(jobs: list[JobRecord]) -> list[SeedGroup]:
    """The jobs with results, grouped over seeds; the best group first."""
    groups: dict[str, dict[str, JobRecord]] = {}
    for job in sorted(jobs, key=lambda job: job.reused):
        if job.nll is not None:
            # One job may have two folders, with `seed=0` as an override and by default.
            groups.setdefault(job.name_without_seed, {}).setdefault(_job_key(job), job)
    metric = measure_of(jobs)
    seed_groups = [SeedGroup(name, list(members.values())) for name, members in groups.items()]
    return sorted(seed_groups, key=lambda group: group.mean(metric))


def ranked_jobs(jobs: list[JobRecord]) -> list[JobRecord]:
    """The jobs with results, those of the best setting first."""
    return [job for group in group_by_setting(jobs) for job in group.jobs]


@dataclass
class Ranking:
    """The best setting, and its lead over the runner-up."""

    best: SeedGroup
    metric: str
    runner_up: SeedGroup | None = None
    lead: float = 0.0  # in units of the metric
    lead_half_width: float | None = None  # of the confidence interval; None without repeated seeds

    @property
    def is_significant(self) -> bool:
        return self.lead_half_width is not None and self.lead > self.lead_half_width


def rank_settings(jobs: list[JobRecord]) -> Ranking | None:
    """None if no job has results. A copy of the best job's results is not the runner-up."""
    groups, metric = group_by_setting(jobs), measure_of(jobs)
    if not groups:
        return None
    best, *others = groups
    runner_up = next((group for group in others if not group.job_keys & best.job_keys), None)
    if runner_up is None:
        return Ranking(best, metric)
    lead = mean_difference(best.scores(metric), runner_up.scores(metric))
    return Ranking(best, metric, runner_up, *lead)


def variance_explained(jobs: list[JobRecord]) -> list[tuple[str, float | None]]:
    """η² of each swept setting: its share of the variance between jobs; the largest first.

    The variance of the means at each of its values, weighted by their number of jobs, over the
    variance of all jobs. None if every job has a different value.
    """
    metric = measure_of(jobs)
    scored = [job for job in jobs if job.nll is not None and job.swept]
    scores = [job.score(metric) or 0.0 for job in scored]
    total = sum((score - mean(scores)) ** 2 for score in scores)
    shares: list[tuple[str, float | None]] = []
    for key in scored[0].swept if total else []:
        levels: dict[str, list[float]] = {}
        for job, score in zip(scored, scores, strict=True):
            levels.setdefault(job.swept[key], []).append(score)
        if len(levels) < 2:
            continue
        between = sum(len(at) * (mean(at) - mean(scores)) ** 2 for at in levels.values())
        shares.append((key, between / total if len(levels) < len(scored) else None))
    return sorted(shares, key=lambda one: -1 if one[1] is None else one[1], reverse=True)


def pareto_front(groups: list[SeedGroup]) -> list[SeedGroup]:
    """The groups that no other beats in both size and nll, by size."""
    front: list[SeedGroup] = []
    by_size = sorted(groups, key=lambda g: (g.mean("parameters"), g.mean("nll")))
    for group in by_size:
        if not front or group.mean("nll") < front[-1].mean("nll"):
            front.append(group)
    return front
