"""SIGKILL at random moments of a sweep, and what is left.

A kill is aimed at one of five phases: it comes at a random moment after that phase was seen on the
disk. After each one all that can be read must be whole, and what was finished must still be; after
a few, the same command ends undisturbed, and its numbers must be those of a sweep that nobody hurt.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from forked import SWEEP, Place, check_whole, numbers, results

PHASES = ("teacher training", "labelling", "student training", "evaluation", "report")
BETWEEN = "between them"
# Its best weights are not the last ones, and a student may stop early.
KILLED = [
    *SWEEP[:-1],
    *("student.keep=best", "student.stop_after=4", "trainer.val_check_interval=0.05"),
    *("schedule=constant", "optimizer.lr=0.5"),
    SWEEP[-1],
]
LONGEST = (1.0, 0.3, 0.8, 0.5, 0.3)  # seconds of each, about, in which a kill comes


def phase_of(place: Place) -> str:
    """What is being done, as the disk shows it."""
    artifacts = place.outputs / "artifacts"
    if not list(artifacts.glob("teacher/*[!l]/manifest.json")):  # none but .partial
        return PHASES[0] if list(artifacts.glob("teacher/*.partial")) else BETWEEN
    if not list(artifacts.glob("predictions/*[!l]/manifest.json")):
        return PHASES[1] if list(artifacts.glob("predictions/*.partial")) else BETWEEN
    states = [(job["status"], name) for name, job in results(place.sweep).items()]
    for status, name in states:
        if status == "running":
            return PHASES[3] if (place.sweep / name / "student").exists() else PHASES[2]
    if [status for status, _ in states] == ["finished"] * 2:
        return PHASES[4]
    return BETWEEN


def kill_once(place: Place, phase: str, dice: random.Random) -> str | None:
    """Returns the phase that was hit; None where the command came to its end before."""
    command = place.start(*KILLED)
    command.until(lambda: phase_of(place) == phase)
    time.sleep(dice.uniform(0, LONGEST[PHASES.index(phase)]))
    hit = phase_of(place) if command.alive else None
    command.signal(signal.SIGKILL)
    command.wait(expect=None)
    return hit if command.process.exitcode == -signal.SIGKILL else None


def kill_at_random(folder: Path, kills: int, seed: int, a_chain: int = 8) -> Counter[str]:
    """How many kills came in each phase. Raises AssertionError where anything was lost."""
    dice = random.Random(seed)
    whole = Place(folder / "whole")
    whole.run(*KILLED)
    expected = numbers(whole.sweep)
    hits: Counter[str] = Counter()
    chain = 0
    while hits.total() < kills:
        place, chain = Place(folder / f"{chain}"), chain + 1
        aims = dice.choices(PHASES, k=min(a_chain, kills - hits.total()))
        for aim in sorted(aims, key=PHASES.index):
            if phase_of(place) == PHASES[4] and aim != PHASES[4]:
                continue
            before = {n for n, job in results(place.sweep).items() if job["status"] == "finished"}
            hit = kill_once(place, aim, dice)
            hits.update([hit] if hit else [])
            check_whole(place.outputs)
            after = results(place.sweep)
            assert all(after[name]["status"] == "finished" for name in before)
        place.run(*KILLED)
        check_whole(place.outputs)
        assert numbers(place.sweep) == expected
        assert len(list(place.outputs.glob("artifacts/teacher/*/manifest.json"))) == 1
        shutil.rmtree(place.folder)
        print(f"{hits.total()} kills, {chain} sweeps: {dict(hits)}", flush=True)
    return hits


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--kills", type=int, default=200)
    asked.add_argument("--seed", type=int, default=0)
    told = asked.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        found = kill_at_random(Path(scratch), told.kills, told.seed)
    print("\n| killed in | kills |\n| --- | --- |")
    for name, count in sorted(found.items(), key=lambda hit: (BETWEEN, *PHASES).index(hit[0])):
        print(f"| {name} | {count} |")
    minutes = (time.monotonic() - start) / 60
    print(f"\n{found.total()} kills in {minutes:.0f} minutes: no result lost, no file corrupt, ")
    print("and every sweep ended at the numbers, curves and weights of the undisturbed one.")
