"""`python -m benchmarks.streaming`: what memory a run takes whose text is larger than that.

It writes the text, trains on it with `data.streaming=true`, and adds up the largest resident memory
(VmHWM) of the command and of each of its workers. What processes share counts in each of them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARAGRAPHS = 2000  # that documents are put together from
WORDS = 5000


def write_text(folder: Path, size: int) -> None:
    """Files of 256 MB of JSON lines, documents of 200 to 4,000 words, `size` bytes in all."""
    dice = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(dice.choices(letters, k=dice.randint(1, 9))) for _ in range(WORDS)]
    paragraphs = [" ".join(dice.choices(words, k=200)) for _ in range(PARAGRAPHS)]
    number = written = 0
    while written < size:
        with (folder / f"{number:03d}.jsonl").open("w") as file:
            while file.tell() < 2**28 and written + file.tell() < size:
                text = "\n".join(dice.choices(paragraphs, k=dice.randint(1, 20)))
                file.write(json.dumps({"text": text}) + "\n")
            written += file.tell()
        number += 1


def peak_mb(pid: int) -> float:
    """The process's largest resident memory so far; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def family(pid: int) -> list[int]:
    """The process and all that it has started."""
    found = [pid]
    for one in found:
        for file in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def watched(command: list[str], cwd: Path) -> tuple[list[float], float]:
    """The peaks in MB of a command and its workers, when their sum is largest; and its seconds."""
    start, most = time.perf_counter(), [0.0]
    process = subprocess.Popen(command, cwd=cwd, env={**os.environ, "WANDB_MODE": "offline"})
    while process.poll() is None:
        most = max(most, [peak_mb(pid) for pid in family(process.pid)], key=sum)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return most, time.perf_counter() - start


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--gigabytes", type=float, default=2)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--folder", help="where the text is to be, or is; a temporary one if not")
    asked.add_argument("settings", nargs="*", help="of the run, such as student.max_steps=1000")
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(args.folder or temporary) / "text"
        if not text.exists():
            text.mkdir(parents=True)
            write_text(text, int(args.gigabytes * 1e9))
        size = sum(file.stat().st_size for file in text.iterdir())
        settings = [
            "data=text",
            f"data.path={text}",
            "data.streaming=true",
            "data.held_out_documents=20",  # which are long here
            f"data.num_workers={args.workers}",
            "teacher=xs",
            "student=xs",
            "teacher.max_steps=50",
            "student.max_steps=200",
            "trainer=cpu",
            "logger=none",
            f"paths.outputs={temporary}/outputs",
            *args.settings,
        ]
        command = [sys.executable, "-m", "lightning_distill", *settings]
        peaks, seconds = watched(command, Path(temporary))
    each = " + ".join(f"{one:.0f}" for one in peaks)
    print(f"{size / 1e9:.2f} GB of text, {args.workers} workers, {seconds:.0f} s; resident memory")
    print(f"at most {sum(peaks):.0f} MB in all processes together: {each}")


if __name__ == "__main__":
    main()
