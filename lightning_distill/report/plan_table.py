"""What a sweep is planned to take, as a table in the terminal."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from lightning_distill.report.tables import duration
from lightning_distill.sweeps.records import distinguishing_overrides

PLAN = "plan.json"  # in the folder of a job's plan

COLUMNS = ("job", "student", "tokens", "FLOPs", "time", "memory", "state")
STATES = {
    "new": "to run",
    "finished": "finished",
    "failed": "failed, left so",
    "reused": "taken over",  # of another sweep, or of a folder of another name
}


def print_plan(folder: Path) -> None:
    """The jobs planned below a folder, what they share, and all of it added up."""
    plans = [json.loads(file.read_text()) for file in folder.rglob(PLAN)]
    if not plans:
        return
    plans.sort(key=lambda one: int(one["number"]))
    for one, name in zip(
        plans, distinguishing_overrides([one["overrides"] for one in plans]), strict=True
    ):
        one["job"] = name or one["job"]
    first: dict[str, str] = {}
    for one in plans:
        if "seconds" in one and first.setdefault(one["key"], one["job"]) != one["job"]:
            one["state"] = f"as {first[one['key']]}"
    todo = [one for one in plans if one["state"] in ("new", "running")]
    count = f"{len(plans)} job{'' if len(plans) == 1 else 's'}"
    table = Table(title=f"{count}, {len(todo)} to run", title_justify="left")
    for name in COLUMNS:
        left = name in ("job", "state")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for one in plans:
        table.add_row(one["job"], *(_costs(one) if one in todo else [""] * 5), _state(one))
    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table)
    shared = list({s["id"]: s for one in todo for s in one["shared"]}.values())
    for one in shared:
        print(_line(one))
    _print_sums(plans[0]["outputs"], todo, [one for one in shared if not one["there"]])


def _costs(one: dict[str, Any]) -> list[str]:
    return [
        short(one["parameters"]),
        short(one["tokens"]),
        short(one["flops"]),
        duration(one["seconds"]),
        decimal(int(one["memory_mb"] * 1e6)),
    ]


def _state(one: dict[str, Any]) -> str:
    if one["state"] == "running":
        return f"to run, from step {one['from_step']}"
    return STATES.get(one["state"], one["state"])


def _line(one: dict[str, Any]) -> str:
    size = f", {short(one['parameters'])} parameters" if "parameters" in one else ""
    name = f"{one['what']} {one['id']}{size}"
    if one["there"]:
        return f"{name}: there"
    unit = {"teacher": "steps", "predictions": "blocks", "text": "sequences"}[one["what"]]
    return (
        f"{name}: to make, {one['count']:,} {unit}, {duration(one['seconds'])}, "
        f"{decimal(int(one['memory_mb'] * 1e6))} of memory, {decimal(int(one['bytes']))} on disk"
    )


def _print_sums(outputs: str, todo: list[dict[str, Any]], made: list[dict[str, Any]]) -> None:
    every = [*todo, *made]
    if not every:
        print("nothing to run")
        return
    seconds, flops, size = (sum(one[key] for one in every) for key in ("seconds", "flops", "bytes"))
    most = max(one["memory_mb"] for one in every) * 1e6
    free, memory = shutil.disk_usage(outputs).free, total_memory()
    print(f"in all: {duration(seconds)} one after the other, {short(flops)}FLOP")
    print(f"disk: {decimal(int(size))}, of {decimal(free)} that are free{_warn(size > free)}")
    print(f"memory: {decimal(int(most))}, of {decimal(memory)}{_warn(most > memory)}")


def _warn(lacks: bool) -> str:
    return ": NOT ENOUGH" if lacks else ""


def total_memory() -> int:
    """Bytes of the GPU where there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def short(count: float) -> str:
    """1,234,000 as 1.23 M."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if count < 1000 or unit == "E":
            break
        count /= 1000
    return f"{count:.3g} {unit}".rstrip() if count else "0"
