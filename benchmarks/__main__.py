"""`make bench`: this project's training step against the alternatives, measured in one run.

Each measurement is a process of its own, pinned to the same cores, one after the other; contenders
take turns, so that a machine that slows down slows all of them.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CUDA, liger_is_missing
from benchmarks.overhead import table

NAMES = {
    "ours": "lightning_distill",
    "unfused": "lightning_distill, `loss.fused=false`",
    "tutorial": "tutorial loop, `kl_div` on all logits",
    "liger": "Liger, fused loss `beta=0` in that loop",
    "trl": "TRL GKDTrainer, `lmbda=0 beta=0`",
    "cross_entropy": "cross-entropy alone, no teacher",
}
CACHED = {
    "labels_alone": "lightning_distill, `loss.alpha=0`: cross-entropy alone",
    "cached_topk": "`transfer=cached`, `topk`, 32 values a token",
    "cached_sampled": "`sampled`, 32 values",
    "cached_hybrid": "`hybrid`, 16 and 16",
    "cached_hidden": "`hidden`",
    "cross_entropy": "cross-entropy alone in a bare loop",
}
HERE = Path(__file__).parent


def measure(contender: str, **workload: int) -> dict[str, Any]:
    options = [f"--{name}={value}" for name, value in workload.items()]
    command = [sys.executable, "-m", "benchmarks.contenders", contender, *options]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(args: argparse.Namespace) -> list[str]:
    """Tokens a second, peak memory and utilisation of whole training steps."""
    missing = liger_is_missing()
    names = [name for name in NAMES if name != "liger" or not missing]
    lines = ["", f"Without Liger's fused loss: {missing}."] if missing else []
    for vocabulary in args.vocabularies:
        size = workload(args, vocabulary)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        rates = []
        for _ in range(args.rounds):
            rates.append(measure("matrix_rate", **size)["rate"])
            for name, runs in found.items():
                runs.append(measure(name, **size))
                print(f"{vocabulary:,} {name}: {runs[-1]['tokens_per_second']:.0f}", flush=True)
        rate = max(rates)
        lines += [
            "",
            f"Vocabulary {vocabulary:,}, {size['sequences']} × {args.length} tokens; matrix "
            f"products ran at {rate / 1e9:,.0f} GFLOP/s at best.",
            "",
            "| | tokens/s | × TRL | peak memory | ÷ TRL | utilisation |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        peer = _median(found["trl"], "tokens_per_second"), _median(found["trl"], "peak")
        for name, runs in found.items():
            speed, peak = _median(runs, "tokens_per_second"), _median(runs, "peak")
            used = runs[0]["flops"] / (_median(runs, "seconds") * rate)
            lines.append(
                f"| {NAMES[name]} | {speed:,.0f} | {speed / peer[0]:.2f} | {peak / 1e9:.2f} GB | "
                f"{peak / peer[1]:.2f} | {used:.0%} |"
            )
    return lines


def cached(args: argparse.Namespace) -> list[str]:
    """Steps of a student that is alone with its cache, against those of one with its labels."""
    lines = []
    for vocabulary in args.vocabularies:
        size = workload(args, vocabulary)
        size["steps"] *= 4  # they are short
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CACHED}
        for _ in range(args.rounds):
            for name, runs in found.items():
                runs.append(measure(name, **size))
                print(f"{vocabulary:,} {name}: {runs[-1]['seconds']:.3f} s", flush=True)
        plain = _median(found["labels_alone"], "seconds")
        lines += [
            "",
            f"From a cache, vocabulary {vocabulary:,}, {size['sequences']} × {args.length} tokens.",
            "",
            "| | seconds a step | × cross-entropy | peak memory |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, runs in found.items():
            seconds, peak = _median(runs, "seconds"), _median(runs, "peak")
            lines.append(
                f"| {CACHED[name]} | {seconds:.3f} | {seconds / plain:.2f} | {peak / 1e9:.2f} GB |"
            )
    return lines


def workload(args: argparse.Namespace, vocabulary: int) -> dict[str, int]:
    # A batch of the largest vocabulary does not fit a small machine in unfused form.
    sequences = 4 if CUDA or vocabulary < 100_000 else 1
    size = {"vocabulary": vocabulary, "length": args.length, "sequences": sequences}
    return size | {"steps": args.steps, "cores": args.cores}


def memory(args: argparse.Namespace) -> list[str]:
    """What the loss and its gradients add to the memory, at growing numbers of tokens."""
    vocabulary = 32_000
    lines = [
        "",
        f"Memory that the loss and its gradients add, vocabulary {vocabulary:,}; the logits of one "
        "model in 32 bits for comparison.",
        "",
        "| tokens | one model's logits | fused | unfused |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for sequences in (1, 4, 8):
        size = {"vocabulary": vocabulary, "length": args.length, "sequences": sequences}
        size |= {"steps": 2, "cores": args.cores}
        fused, whole = (measure(n, **size)["added"] for n in ("loss_alone", "unfused_loss_alone"))
        tokens = sequences * args.length
        lines.append(
            f"| {tokens:,} | {4 * tokens * vocabulary / 1e6:,.0f} MB | {fused / 1e6:,.0f} MB | "
            f"{whole / 1e6:,.0f} MB |"
        )
    return lines


def overhead(args: argparse.Namespace) -> list[str]:
    """What Lightning, logging and each feature add to the demo's step."""
    return ["", "The demo's step, in one process on one thread.", "", *table(80, args.rounds)]


TABLES = {"steps": steps, "cached": cached, "memory": memory, "overhead": overhead}


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[4096, 32_000, 128_256])
    parser.add_argument("--length", type=int, default=2048 if CUDA else 512, help="tokens")
    parser.add_argument("--steps", type=int, default=20 if CUDA else 3, help="timed, a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each contender")
    parser.add_argument("--cores", type=int, default=1, help="without a GPU")
    parser.add_argument(
        "--tables", nargs="+", choices=list(TABLES), help="all without it", default=list(TABLES),
    )  # fmt: skip
    args = parser.parse_args()
    if CUDA:
        device = f"{torch.cuda.get_device_name()}, bfloat16"
    else:
        device = f"{args.cores} core{'s' if args.cores > 1 else ''} of {_processor()}, float32"
    lines = [f"{date.today()}, {device}, torch {torch.__version__}."]
    for name in args.tables:
        lines += TABLES[name](args)
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if len(args.tables) == len(TABLES):
        file = HERE / f"results-{'gpu' if CUDA else 'cpu'}.md"
        file.write_text(text)
        print(f"written to {file}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
