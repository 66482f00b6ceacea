"""A sweep's jobs side by side: what each gained over training without a teacher, what is best."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from lightning_distill.storage.artifacts import key_of
from lightning_distill.sweeps.records import Row, read_jobs
from lightning_distill.sweeps.statistics import difference

__all__ = ["Row", "gather"]


def gather(folder: Path) -> list[Row]:
    """All jobs below a folder, each measured against those that had no teacher."""
    rows = read_jobs(folder)
    plain = [r for r in rows if r.kind == "baseline" and r.bits is not None]
    smooth = [r for r in rows if r.kind == "label smoothing" and r.bits is not None]
    for row in rows:
        if row.bits is None or not row.cfg:
            continue
        twin, smoothed = _best(plain, _twin_key, row), _best(smooth, _twin_key, row)
        rival = _best([*plain, *smooth], _rival_key, row)
        if row.kind == "distilled":
            row.gap_closed, row.gap_closed_best = _share(twin, row), _share(rival, row)
            row.gain_over_smoothing = _gain(smoothed, row)
        if row.kind != "baseline":
            row.gain = _gain(twin, row)
    return rows


def _best(candidates: list[Row], key: Callable[[Row], str], row: Row) -> float | None:
    """The fewest bits a byte among those that have this row's key."""
    return min(
        (r.bits for r in candidates if r.bits is not None and key(r) == key(row)), default=None
    )


def _share(baseline: float | None, row: Row) -> float | None:
    """(baseline − student) / (baseline − teacher) in bits a byte, which do not depend on the
    tokenizer; in nll of what has no bytes."""
    teacher = row.results.get("teacher")
    if baseline is None or row.bits is None or not teacher:
        return None
    gap = baseline - teacher.get("bits_per_byte", teacher["nll"])
    return (baseline - row.bits) / gap if gap > 0 else None


def _gain(baseline: float | None, row: Row) -> float | None:
    """baseline − student, in nats per token of the student's."""
    if baseline is None or not row.bits or row.nll is None:
        return None
    return (baseline - row.bits) * row.nll / row.bits


def _twin_key(row: Row) -> str:
    """Equal for jobs that differ only in what the student has from its teacher."""
    same = ("optimizer", "schedule", "trainer")
    steps = {"max_steps": row.cfg["student"]["max_steps"]}
    return key_of({k: row.cfg[k] for k in same} | steps | {"of": _rival_key(row)})


def _rival_key(row: Row) -> str:
    """Equal for jobs that train a student of one size on the same text, however long or well."""
    training = ("max_steps", "initialize", "layers")
    student = {k: v for k, v in row.cfg["student"].items() if k not in training}
    text = {"data": row.cfg["data"], "num_blocks": row.cfg["transfer"].get("num_blocks")}
    return key_of({"student": student, "seed": row.cfg["seed"], **text})


@dataclass
class Group:
    """One setting, at each of its seeds."""

    name: str
    rows: list[Row]

    def scores(self, key: str) -> list[float]:
        return [score for row in self.rows if (score := row.score(key)) is not None]

    def mean(self, key: str) -> float:
        return mean(self.scores(key))

    def shares(self) -> list[float]:
        return [row.gap_closed for row in self.rows if row.gap_closed is not None]

    @property
    def kind(self) -> str:
        return self.rows[0].kind

    @property
    def keys(self) -> set[str]:
        return {row.results.get("key", row.name) for row in self.rows}


def measure_of(rows: list[Row]) -> str:
    """What says which of these jobs is better: nll, unless a token is not the same in all."""
    ratios = [row.bits / row.nll for row in rows if row.nll and row.bits is not None]
    alike = not ratios or max(ratios) - min(ratios) < 1e-6 * max(ratios)
    return "nll" if alike else "bits_per_byte"


def over_seeds(rows: list[Row]) -> list[Group]:
    """The settings that have results, the best first."""
    groups: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row.took_over):
        if row.nll is not None:
            # The same job may stand in the folder twice, with seed=0 said and unsaid.
            groups.setdefault(row.label, {}).setdefault(row.results.get("key", row.name), row)
    found = [Group(name, list(members.values())) for name, members in groups.items()]
    measure = measure_of(rows)
    return sorted(found, key=lambda group: group.mean(measure))


@dataclass
class Verdict:
    """The best setting, and by how much it is better than the next."""

    best: Group
    measure: str
    next: Group | None = None
    lead: float = 0.0
    noise: float | None = None  # half the width of the lead's interval; unknown without seeds

    @property
    def is_clear(self) -> bool:
        return self.noise is not None and self.lead > self.noise


def verdict(rows: list[Row]) -> Verdict | None:
    """None where no job has results. A job that took over the best one's is not the next."""
    groups, measure = over_seeds(rows), measure_of(rows)
    if not groups:
        return None
    best, *others = groups
    rival = next((group for group in others if not group.keys & best.keys), None)
    if rival is None:
        return Verdict(best, measure)
    return Verdict(best, measure, rival, *difference(best.scores(measure), rival.scores(measure)))


def influence(rows: list[Row]) -> list[tuple[str, float | None]]:
    """For each swept setting its share of the variance between jobs, the largest first.

    That is the variance of the means at each of its values, weighted by their jobs, over that of
    all jobs: η². None where every job has a value of its own, which leaves nothing to compare.
    """
    measure = measure_of(rows)
    done = [row for row in rows if row.nll is not None and row.settings]
    scores = [row.score(measure) or 0.0 for row in done]
    total = sum((score - mean(scores)) ** 2 for score in scores)
    found: list[tuple[str, float | None]] = []
    for key in done[0].settings if total else []:
        levels: dict[str, list[float]] = {}
        for row, score in zip(done, scores, strict=True):
            levels.setdefault(row.settings[key], []).append(score)
        if len(levels) < 2:
            continue
        between = sum(len(at) * (mean(at) - mean(scores)) ** 2 for at in levels.values())
        found.append((key, between / total if len(levels) < len(done) else None))
    return sorted(found, key=lambda one: -1 if one[1] is None else one[1], reverse=True)


def pareto(groups: list[Group]) -> list[Group]:
    """Those that no other beats in both size and perplexity (nll, of what has none), by size."""
    front: list[Group] = []
    by_size = sorted(groups, key=lambda g: (g.mean("parameters"), g.mean("nll")))
    for group in by_size:
        if not front or group.mean("nll") < front[-1].mean("nll"):
            front.append(group)
    return front
