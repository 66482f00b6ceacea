"""What a sweep says of its jobs on the screen, where they run one after another in one process."""

import time
from pathlib import Path
from statistics import mean

from lightning_distill.metrics.declarations import AGREEMENT, NLL
from lightning_distill.report.formatting import duration, short_name
from lightning_distill.sweeps.job import results_in
from lightning_distill.sweeps.multirun import read_sweep_command
from lightning_distill.sweeps.records import distinguishing_overrides


class SweepProgress:
    """A line when a job begins, `[2/4] alpha=0, student=xs · 3 min left`, and one with its scores.

    folder: of the sweep. started: when this command began; jobs that it skips began earlier.
    Only Hydra's own sweeper says how many jobs there are: others choose the next one by the
    results of those before.
    """

    def __init__(self, folder: Path, started: str) -> None:
        self.folder, self.started, self.seconds = folder, started, list[float]()
        self.start_time = time.perf_counter()

    def start(self, number: int, overrides: list[str]) -> None:
        command, jobs = read_sweep_command(self.folder)
        names = distinguishing_overrides(jobs)
        index = next((i for i, job in enumerate(jobs) if set(job) == set(overrides)), None)
        if index is not None:  # a launcher may have changed the order
            name, count = names[index], f"[{number + 1}/{len(jobs)}]"
        else:
            name, count = ",".join(o for o in overrides if o not in command), f"[{number + 1}]"
        keys = [one.partition("=")[0] for one in name.split(",")]
        left = ""
        if self.seconds and jobs:
            left = f" · {duration(mean(self.seconds) * (len(jobs) - number))} left"
        print(f"{count} {short_name(name, keys)}{left}", flush=True)
        self.start_time = time.perf_counter()

    def end(self, job_folder: Path) -> None:
        seconds = time.perf_counter() - self.start_time
        results = results_in(job_folder)
        student = results.get("student") or {}
        scores = [
            f"{metric.label} {value:.{metric.digits}f}"
            for metric in (NLL, AGREEMENT)
            if isinstance(value := student.get(metric.key), int | float)
        ]
        if results.get("started") == self.started and scores:
            self.seconds.append(seconds)
            print(f"      {' · '.join([*scores, duration(seconds)])}", flush=True)
