"""Whole runs of the command against each other: `python -m benchmarks.runs`, about an hour.

One job at a time on the same cores. Teachers are trained first and do not count; labelling does.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CACHED = ["transfer=cached", "transfer.temperatures=[1]"]
DISTILLED = ["loss.alpha=1", "loss.temperature=1", "loss.hard_weight=0"]
PLAIN = ["loss.alpha=0"]

# Each text with its models, as in conf/experiment: what `experiment` alone would sweep over.
TEXTS = {
    "demo": ["teacher=s", "student=xs", "teacher.max_steps=800", "teacher.optimizer.lr=5e-3",
             "student.max_steps=400", "transfer.num_blocks=320"],
    "larger": ["teacher=m", "student=s", "teacher.max_steps=1100", "teacher.optimizer.lr=4e-3",
               "student.hidden_size=96", "student.num_hidden_layers=3",
               "student.num_attention_heads=3", "student.max_steps=320"],
}  # fmt: skip


BUDGETS = [("demo", 400, 320), ("larger", 640, 640), ("larger", 960, 640)]  # text, steps, blocks


class Bench:
    def __init__(self, outputs: Path, cores: int) -> None:
        self.outputs = outputs
        self.cores = set(sorted(os.sched_getaffinity(0))[:cores])
        self.number = 0

    def run(self, *overrides: str) -> list[dict[str, Any]]:
        """The results of a command's jobs, in their order, with the command's own seconds."""
        self.number += 1
        folder = self.outputs / f"run-{self.number}"
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "lightning_distill", "-m", "logger=none", *overrides]
        command += ["sweep.rerun=all"]  # nothing of an earlier command's
        where = [f"paths.outputs={self.outputs}", f"hydra.sweep.dir={folder}"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *where],
            env={**os.environ, "OMP_NUM_THREADS": str(len(self.cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        found = [json.loads(f.read_text()) for f in sorted(folder.rglob("results.json"))]
        for one in found:
            cost = one["cost"]
            one["seconds"] = cost["student_seconds"] + cost["transfer_seconds"]
            one["wall"] = wall
            print(" ".join(one["overrides"][1:-3]), f"{one['student']['nll']:.4f}",
                  f"{cost['transfer_seconds']:.1f} + {cost['student_seconds']:.1f} s",
                  flush=True)  # fmt: skip
        return found

    def train_teacher(self, *overrides: str) -> None:
        """Without a cache of its predictions, which is what is measured."""
        command = [sys.executable, "-m", "lightning_distill", "stage=teacher", "logger=none"]
        subprocess.run([*command, *overrides, f"paths.outputs={self.outputs}"], check=True)
        shutil.rmtree(self.outputs / "artifacts" / "predictions", ignore_errors=True)


def sweep(bench: Bench, args: argparse.Namespace) -> list[str]:
    """Nine students: from one cache, online, and on labels alone."""
    text = [*TEXTS["demo"], "loss.hard_weight=1"]
    nine = ["loss.temperature=1,2,4", "loss.alpha=0.25,0.5,1"]
    bench.train_teacher(*text)
    ways = {
        "cross-entropy alone": [*PLAIN, "seed=range(9)"],
        "`transfer=cached`, labelling included": ["transfer=cached", *nine],
        "`transfer=online`": nine,
    }
    lines = [
        "",
        "A sweep of nine students of the demo, 3 temperatures × 3 alphas.",
        "",
        "| | training and labelling | × cross-entropy | the whole command |",
        "| --- | ---: | ---: | ---: |",
    ]
    plain = 0.0
    for name, overrides in ways.items():
        found = bench.run(*text, *overrides)
        assert len(found) == 9
        seconds = sum(one["seconds"] for one in found)
        plain = plain or seconds
        lines.append(
            f"| {name} | {seconds:.0f} s | {seconds / plain:.2f} | {found[0]['wall']:.0f} s |"
        )
    return lines


def equal_time(bench: Bench, args: argparse.Namespace) -> list[str]:
    """A student from a cache, and a plain one that trains as long as labelling and it took."""
    lines = [
        "",
        f"Equal time, mean ± standard deviation of {args.seeds} seeds.",
        "",
        "| text | steps | blocks labelled | labelling + training | nll | plain steps | seconds "
        "| nll |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    seeds = f"seed=range({args.seeds})"
    for text, steps, blocks in args.budgets:
        base = [*TEXTS[text], seeds, f"transfer.num_blocks={blocks}"]
        bench.train_teacher(*TEXTS[text])
        short = [f"student.max_steps={steps}"]
        cached = bench.run(*base, *CACHED, *DISTILLED, *short)
        labelling = max(one["cost"]["transfer_seconds"] for one in cached)
        training = statistics.mean(one["cost"]["student_seconds"] for one in cached)
        data = [*TEXTS[text], seeds, *PLAIN]
        rate = (
            statistics.mean(one["cost"]["student_seconds"] for one in bench.run(*data, *short))
            / steps
        )
        longer = round((labelling + training) / rate)
        plain = bench.run(*data, f"student.max_steps={longer}")
        seconds = statistics.mean(one["cost"]["student_seconds"] for one in plain)
        lines.append(
            f"| {text} | {steps} | {blocks:,} | {labelling:.0f} + {training:.0f} s | "
            f"{_nll(cached)} | {longer:,} | {seconds:.0f} s | {_nll(plain)} |"
        )
        print(lines[-1], flush=True)
    return lines


def _nll(found: list[dict[str, Any]]) -> str:
    values = [one["student"]["nll"] for one in found]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _budget(said: str) -> tuple[str, int, int]:
    text, steps, blocks = said.split(":")
    return text, int(steps), int(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runs", description=__doc__)
    parser.add_argument("--tables", nargs="+", default=["sweep", "equal_time"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--outputs", type=Path, help="a new folder without it")
    parser.add_argument(
        "--budgets", type=_budget, nargs="+", metavar="TEXT:STEPS:BLOCKS", default=BUDGETS
    )
    args = parser.parse_args()
    bench = Bench((args.outputs or Path(tempfile.mkdtemp())).resolve(), args.cores)
    tables = {"sweep": sweep, "equal_time": equal_time}
    lines = [line for name in args.tables for line in tables[name](bench, args)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
