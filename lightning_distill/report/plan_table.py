"""The estimated cost of a sweep's jobs (`stage=plan`), as a table in the terminal."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from lightning_distill.report.formatting import (
    duration,
    jobs_text,
    print_table,
    with_unit_prefix,
)
from lightning_distill.sweeps.records import distinguishing_overrides

PLAN = "plan.json"  # in the folder of a planned job

COLUMNS = ("job", "student", "tokens", "FLOPs", "time", "memory", "state")
STATES = {
    "new": "to run",
    "finished": "finished",
    "failed": "failed, not run again",
    "reused": "reused",  # from another sweep, or from a folder of another name
}
UNITS = {"teacher": "steps", "predictions": "blocks", "text": "sequences"}  # of artifacts
MB = 1e6


def print_plan(folder: Path) -> None:
    """Print the jobs planned below a folder, the artifacts they share, and the sums."""
    plans = _read_plans(folder)
    if not plans:
        return
    to_run = [plan for plan in plans if plan["state"] in ("new", "running")]
    title = f"{jobs_text(len(plans))}, {len(to_run)} to run"
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        is_text = column in ("job", "state")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for plan in plans:
        costs = _costs(plan) if plan in to_run else [""] * 5
        table.add_row(plan["job"], *costs, _state(plan))
    print_table(table)
    artifacts = list({one["id"]: one for plan in to_run for one in plan["shared"]}.values())
    for artifact in artifacts:
        print(_artifact_line(artifact))
    missing = [artifact for artifact in artifacts if not artifact["there"]]
    _print_sums(plans[0]["outputs"], [*to_run, *missing])


def _read_plans(folder: Path) -> list[dict[str, Any]]:
    """In the order of the sweep. A job with the key of an earlier one reuses its results."""
    plans = [json.loads(file.read_text()) for file in folder.rglob(PLAN)]
    plans.sort(key=lambda plan: int(plan["number"]))
    names = distinguishing_overrides([plan["overrides"] for plan in plans])
    first: dict[str, str] = {}
    for plan, name in zip(plans, names, strict=True):
        plan["job"] = name or plan["job"]
        if "seconds" in plan and first.setdefault(plan["key"], plan["job"]) != plan["job"]:
            plan["state"] = f"as {first[plan['key']]}"
    return plans


def _costs(plan: dict[str, Any]) -> list[str]:
    return [
        with_unit_prefix(plan["parameters"]),
        with_unit_prefix(plan["tokens"]),
        with_unit_prefix(plan["flops"]),
        duration(plan["seconds"]),
        decimal(int(plan["memory_mb"] * MB)),
    ]


def _state(plan: dict[str, Any]) -> str:
    if plan["state"] == "running":
        return f"to run, from step {plan['from_step']}"
    return STATES.get(plan["state"], plan["state"])


def _artifact_line(artifact: dict[str, Any]) -> str:
    kind = artifact["what"]
    name = f"{kind} {artifact['id']}"
    if "parameters" in artifact:
        name += f", {with_unit_prefix(artifact['parameters'])} parameters"
    if artifact["there"]:
        return f"{name}: exists"
    return (
        f"{name}: to make, {artifact['count']:,} {UNITS[kind]}, {duration(artifact['seconds'])}, "
        f"{decimal(int(artifact['memory_mb'] * MB))} of memory, "
        f"{decimal(int(artifact['bytes']))} on disk"
    )


def _print_sums(outputs: str, costs: list[dict[str, Any]]) -> None:
    if not costs:
        print("nothing to run")
        return
    seconds, flops, size = (sum(one[key] for one in costs) for key in ("seconds", "flops", "bytes"))
    peak = max(one["memory_mb"] for one in costs) * MB
    free, memory = shutil.disk_usage(outputs).free, total_memory()
    print(f"in all: {duration(seconds)} one after the other, {with_unit_prefix(flops)}FLOP")
    print(f"disk: {decimal(int(size))}, of {decimal(free)} that are free{_warning(size > free)}")
    print(f"memory: {decimal(int(peak))}, of {decimal(memory)}{_warning(peak > memory)}")


def _warning(is_short: bool) -> str:
    return ": NOT ENOUGH" if is_short else ""


def total_memory() -> int:
    """Bytes of the current GPU, else bytes of the machine's memory."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
