"""The head of the page: when, where and of what the jobs were made."""

from collections.abc import Iterable
from typing import Any

from lightning_distill.distributed.machine import PACKAGES
from lightning_distill.report.formatting import millions, with_unit_prefix
from lightning_distill.report.tables import teachers
from lightning_distill.sweeps.records import JobRecord

MOST = 4  # different texts that a line lists
WEIGHTS = ("temperature", "alpha", "hard_weight", "hard_target")  # settings of every loss


def about(jobs: list[JobRecord], settings: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and texts; what no job says is left out. settings: of each job, resolved."""
    settings = [one for one in settings if one]  # of a job without a readable config, empty
    environments = [job.results.get("environment") or {} for job in jobs]
    started = sorted(str(job.results["started"])[:16] for job in jobs if "started" in job.results)
    facts = {
        "date": " to ".join(dict.fromkeys([*started[:1], *started[-1:]])),
        "machine": _listed(one.get("machine", "") for one in environments),
        "software": _listed(map(_software, environments)),
        "data": _listed(_data(one) for one in settings),
        "examples": _listed(_without_key(str(job.results.get("examples", ""))) for job in jobs),
        "teacher": _listed(_teachers(jobs, settings)),
        "student": _listed(_student(job) for job in jobs if job.nll is not None and not job.reused),
        "loss": _losses(settings),
    }
    return [(name, text) for name, text in facts.items() if text]


def _listed(texts: Iterable[str]) -> str:
    different = list(dict.fromkeys(filter(None, texts)))
    more = [f"and {len(different) - MOST} more"] if len(different) > MOST else []
    return "; ".join([*different[:MOST], *more])


def _software(environment: dict[str, Any]) -> str:
    versions = [f"{name} {environment[name]}" for name in PACKAGES if name in environment]
    python = [f"Python {environment['python']}"] if "python" in environment else []
    return ", ".join([*versions, *python])


def _data(settings: dict[str, Any]) -> str:
    data = settings["data"]
    source = data.get("source") or {}
    path = source.get("path") if isinstance(source, dict) else None
    task, kind = (str(name or "").rsplit(".", 1)[-1] for name in (data.get("_target_"), path))
    where = str(data.get("path") or data.get("name") or "")
    return ", ".join(filter(None, [task, kind, where]))


def _without_key(examples: str) -> str:
    """The sizes of the splits, without the key of the artifact."""
    return examples.rpartition("; ")[0] or examples


def _teachers(jobs: list[JobRecord], settings: list[dict[str, Any]]) -> Iterable[str]:
    sizes = ", ".join(dict.fromkeys(millions(one["parameters"]) for one, _ in teachers(jobs)))
    roles = [one["teacher"] for one in settings if isinstance(one.get("teacher"), dict)]
    return dict.fromkeys(", ".join(filter(None, [_model(one), sizes])) for one in roles)


def _model(role: dict[str, Any]) -> str:
    """Where it comes from, or its shape, and for how long it is trained."""
    origin = str(role.get("name") or role.get("path") or "")
    layers, width = role.get("num_hidden_layers"), role.get("hidden_size")
    shape = f"{layers} layers of {width}" if layers and width and not origin else ""
    epochs, steps = role.get("epochs"), role.get("max_steps")
    length = f"{epochs} epochs" if epochs else f"{steps:,} steps" if isinstance(steps, int) else ""
    return ", ".join(filter(None, [origin, shape, length]))


def _student(job: JobRecord) -> str:
    size = millions(job.score("parameters") or 0)
    tokens = job.cost("student_seconds") * job.cost("student_tokens_per_second")
    steps = f"{job.steps[0]:,} steps" if job.steps else ""
    trained = f"{with_unit_prefix(tokens)} target tokens" if tokens else ""
    return ", ".join(filter(None, [size, steps, trained]))


def _losses(settings: list[dict[str, Any]]) -> str:
    """The divergences, and the values of what weighs them."""
    distilled = [one["loss"] for one in settings if one["loss"].get("alpha") != 0]
    parts = [", ".join(dict.fromkeys(filter(None, map(_divergence, distilled))))]
    for key in WEIGHTS:
        values = list(dict.fromkeys(str(loss[key]) for loss in distilled if key in loss))
        if values:
            parts.append(f"{key.replace('_', ' ')} {', '.join(values)}")
    baselines = ["labels alone"] if len(distilled) < len(settings) else []
    return "; ".join([*filter(None, parts), *baselines])


def _divergence(loss: dict[str, Any]) -> str:
    divergence = loss.get("divergence")
    path = divergence.get("path") if isinstance(divergence, dict) else None
    return str(path or "").rsplit(".", 1)[-1].replace("_", " ").replace("kl", "KL")
