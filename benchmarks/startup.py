"""How long a command takes to answer what needs no training.

python -m benchmarks.startup           # the median of five, each in a process of its own
python -m benchmarks.startup --rounds 9
"""

import argparse
import os
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from time import perf_counter

COMMAND = [sys.executable, "-m", "lightning_distill"]
LINE = "lightning-distill stage="
CASES = {
    "import lightning_distill": [sys.executable, "-c", "import lightning_distill"],
    "--help": [*COMMAND, "--help"],
    "--version": [*COMMAND, "--version"],
    "a typing mistake": [*COMMAND, "loss.temprature=2"],
    "a missing data.path": [*COMMAND, "data=text", "data.path=/nowhere/my.jsonl"],
    "completion": [*COMMAND, "-sc", "query=bash"],
}


def seconds(command: list[str]) -> tuple[float, float]:
    """By the clock, and of a processor, which other programs on the machine change less."""
    environment = {**os.environ, "COMP_LINE": LINE, "COMP_POINT": str(len(LINE))}
    begin, before = perf_counter(), getrusage(RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, capture_output=True, check=False)
    after = getrusage(RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return perf_counter() - begin, used


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up times of the command.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds([*COMMAND, "--version"])  # the files are in the page cache from here on
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, seconds of {rounds} rounds")
    for name, command in CASES.items():
        clock, used = zip(*(seconds(command) for _ in range(rounds)), strict=True)
        shown = f"median {median(clock):5.2f}  best {min(clock):5.2f}"
        print(f"{name:26} {shown}  of a processor {median(used):5.2f}", flush=True)


if __name__ == "__main__":
    main()
