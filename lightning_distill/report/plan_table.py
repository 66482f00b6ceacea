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
    "reused": "reused",  # the results of another folder
}
PARTS = {"training": "training", "evaluation": "evaluation", "answer": "generated answers"}
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
    _print_sums(Path(plans[0]["outputs"]), [*to_run, *missing])


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
    name = f"{artifact['what']} {artifact['id']}"
    if "parameters" in artifact:
        name += f", {with_unit_prefix(artifact['parameters'])} parameters"
    if artifact["there"]:
        return f"{name}: exists"
    units = f"{artifact['count']:,} {artifact['unit']}"
    return (
        f"{name}: to make, {units}, {duration(artifact['seconds'])}, "
        f"{decimal(int(artifact['memory_mb'] * MB))} of memory, "
        f"{decimal(int(artifact['bytes']))} on disk"
    )


def _print_sums(outputs: Path, costs: list[dict[str, Any]]) -> None:
    if not costs:
        print("nothing to run")
        return
    seconds, flops = (sum(cost[key] for cost in costs) for key in ("seconds", "flops"))
    jobs = [cost for cost in costs if "job" in cost]
    parts = {name: sum(job[f"{name}_seconds"] for job in jobs) for name in PARTS}
    if any(parts.values()):
        shares = ", ".join(f"{duration(part)} of {PARTS[name]}" for name, part in parts.items())
        print(f"jobs: {shares}")
    print(f"total: {duration(seconds)} one after the other, {with_unit_prefix(flops)}FLOP")
    demands = {"disk": disk_demand(outputs, costs), "memory": memory_demand(costs)}
    for name, (numbers, suffices) in demands.items():
        print(f"{name}: {numbers}{'' if suffices else ': NOT ENOUGH'}")


def disk_demand(outputs: Path, costs: list[dict[str, Any]]) -> tuple[str, bool]:
    """The bytes to write and those free below `outputs`, and whether these suffice."""
    size, free = sum(cost["bytes"] for cost in costs), shutil.disk_usage(outputs).free
    return f"{decimal(int(size))} of {decimal(free)} free", size <= free


def memory_demand(costs: list[dict[str, Any]]) -> tuple[str, bool]:
    """The peak and the total memory, of the current GPU if there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        total = int(torch.cuda.mem_get_info()[1])
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak = max(cost["memory_mb"] for cost in costs) * MB
    return f"{decimal(int(peak))} of {decimal(total)}", peak <= total
