"""The files of a job's folder, as its record has them. Any of them may be absent or damaged."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from lightning_distill.sweeps.job import RESULTS, check_results, read_results

CONFIG = Path(".hydra") / "config.yaml"
GROUPS = ("data", "student", "loss", "transfer", "optimizer", "schedule", "trainer")
BIN = ("count", "confidence", "accuracy")


def read_config(folder: Path) -> dict[str, Any]:
    """Empty where the config lacks a group, or cannot be read."""
    config = read_yaml(folder / CONFIG)
    complete = isinstance(config, dict) and all(isinstance(config.get(g), dict) for g in GROUPS)
    return config if complete else {}


def read_yaml(file: Path) -> Any:
    """None if the file is absent or damaged."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def results_or_reason(folder: Path) -> dict[str, Any]:
    """The results; a status and an error instead where results.json is absent or damaged."""
    try:
        results = read_results(folder)
        check_results(results)
    except FileNotFoundError:
        results = {"status": "no results", "error": f"no {RESULTS}: killed before it began"}
    except (OSError, ValueError) as error:
        results = {"status": "unreadable", "error": f"{RESULTS} cannot be read: {error}"}
    overrides = results.get("overrides")
    if not isinstance(overrides, list):
        overrides = read_yaml(folder / ".hydra" / "overrides.yaml")
    results["overrides"] = [str(one) for one in overrides] if isinstance(overrides, list) else []
    return results


def read_curves(file: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv, without a last one that is cut off."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return [p for p in csv.DictReader(lines) if p.get("step") and None not in p.values()]


def read_samples(file: Path) -> list[dict[str, str]]:
    samples = json.loads(file.read_text(encoding="utf-8"))
    return [one for one in samples if {"prompt", "student"} <= set(one)]


def read_predictions(file: Path) -> dict[str, Any]:
    """`reliability` and `differences` of predictions.json; the latter may be empty.

    Raises ValueError, TypeError or KeyError for a file of something else.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    reliability = {
        str(role): [{key: float(one[key]) for key in BIN} for one in bins]
        for role, bins in dict(content["reliability"]).items()
    }
    differences = content.get("differences") or {}
    if differences:
        passages = [
            {"tokens": [str(t) for t in one["tokens"]], "kl": [float(x) for x in one["kl"]]}
            for one in differences["passages"]
        ]
        largest = [
            {
                "before": str(one["before"]),
                "token": str(one["token"]),
                "kl": float(one["kl"]),
                "student": [(str(token), float(p)) for token, p in one["student"]],
                "teacher": [(str(token), float(p)) for token, p in one["teacher"]],
            }
            for one in differences["largest"]
        ]
        differences = {"passages": passages, "largest": largest}
    return {"reliability": reliability, "differences": differences}
