"""Real commands whose disk, files, clock, workers and signals fail them: each says so, leaves
nothing half-written, and ends at the numbers of an undisturbed one when it is given again."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from forked import EVERY, STEPS, SWEEP, Place, check_whole, children, environment, numbers, results
from wandb_server import Server

from lightning_distill.tracking import wandb_run
from lightning_distill.training.checkpoint_io import LAST, PREVIOUS

pytestmark = pytest.mark.slow


def long(value):
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The numbers of the sweep that nobody has hurt, and its folder."""
    place = Place(tmp_path_factory.mktemp("whole"))
    place.run()
    return numbers(place.sweep), place


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "place")


@pytest.fixture
def halfway(expected, tmp_path):
    """What the sweep leaves when it is stopped in the middle of its second student; a copy."""
    place = Place(tmp_path / "halfway")
    _, whole = expected
    shutil.copytree(whole.outputs, place.outputs)
    (name,) = [name for name in results(place.sweep) if "alpha=1" in name]
    shutil.rmtree(place.sweep / name)
    command = place.start()
    last = place.sweep / name / "checkpoints" / LAST
    command.until(lambda: (last.parent / PREVIOUS).exists())
    command.signal(signal.SIGTERM)
    command.wait(128 + signal.SIGTERM)
    assert (last.parent / PREVIOUS).exists()
    return place, last


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of so many kilobytes as a folder; and again, with other options."""
    folder = tmp_path / "place" / "outputs"

    def mount(*options):
        told = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if subprocess.run(told, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")

    folder.mkdir(parents=True)
    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def steps(place):
    """The lines of training that the first student has logged."""
    files = list(place.sweep.glob("*alpha=0.5*/metrics.csv"))
    return files[0].read_text().splitlines() if files else []


def bytes_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_ctrl_c_once_keeps_the_step_and_twice_ends_at_once(place, expected):
    for presses in (1, 2):
        before = len(steps(place))
        command = place.start()
        command.until(lambda before=before: len(steps(place)) > before + EVERY)
        for _ in range(presses):
            command.signal(signal.SIGINT)
        command.wait(130)
        check_whole(place.outputs)
        assert ("stopped by SIGINT at step" in command.said) or presses == 2
        assert "Traceback" not in command.said
    assert "resuming from step" in place.run()
    assert numbers(place.sweep) == expected[0]


@pytest.mark.parametrize("share", [long(0.05), 0.3, long(0.5), long(0.7), 0.9])
def test_a_full_disk_is_named_and_what_fitted_is_kept(place, disk, expected, share):
    size = int(share * bytes_of(expected[1].outputs) / 1024)
    disk(f"size={size}k")
    said = place.run(expect=None)
    assert "No space left on device" in said or "disk" in said, said
    assert "Traceback" not in said
    check_whole(place.outputs)
    kept = {str(file) for file in place.outputs.glob("artifacts/*/*[!l]/manifest.json")}
    disk("remount", "size=200m")
    said = place.run()
    assert kept <= {str(file) for file in place.outputs.glob("artifacts/*/*/manifest.json")}
    assert numbers(place.sweep) == expected[0]


def test_a_folder_that_is_read_only_is_named_and_left_as_it_is(place, disk):
    disk("size=200m")
    place.run()
    before = numbers(place.sweep)
    disk("remount", "ro")
    said = place.run(*SWEEP[:-1], "loss.alpha=0.7", expect=None)
    assert "Read-only file system: " in said
    assert "Traceback" not in said
    assert numbers(place.sweep) == before


@pytest.mark.parametrize("which", ["the last one", "both"])
def test_a_checkpoint_cut_short_is_gone_behind(halfway, expected, which):
    place, last = halfway
    dice = random.Random(which)
    for file in [last] if which == "the last one" else [last, last.with_name(PREVIOUS)]:
        os.truncate(file, dice.randrange(file.stat().st_size))
    said = place.run()
    assert f"{LAST} is damaged" in said
    assert ("resuming from step" in said) == (which == "the last one")
    assert numbers(place.sweep) == expected[0]


def test_a_cache_with_a_flipped_bit_is_not_read(halfway, expected):
    place, _ = halfway
    (cache,) = place.outputs.glob("artifacts/predictions/*/")
    shard = max(cache.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 4
    shard.write_bytes(data)
    said = place.run()
    assert f"is damaged ({shard.name}) and will be created again" in said
    check_whole(place.outputs)
    assert numbers(place.sweep) == expected[0]


def test_artifacts_that_are_deleted_while_they_are_used_are_made_again(place, expected):
    command = place.start()
    command.until(lambda: list(place.sweep.glob("*alpha=0.5*/checkpoints/last.ckpt")))
    shutil.rmtree(place.outputs / "artifacts", ignore_errors=True)
    command.wait(expect=None)
    assert "half" not in command.said
    place.run()
    check_whole(place.outputs)
    assert numbers(place.sweep) == expected[0]


def jump():
    """Has the clock of this process leap by a day, forwards and back."""
    real, calls = time.time, iter(range(10**9))

    def leaping():
        return real() + 86400 * (next(calls) // 20 % 3 - 1)

    time.time = leaping


@pytest.mark.long
def test_a_clock_that_jumps_changes_nothing(place, expected):
    place.run(before=jump)
    check_whole(place.outputs)
    assert numbers(place.sweep) == expected[0]
    costs = [job["cost"] for job in results(place.sweep).values()]
    assert all(0 <= cost["student_seconds"] < 3600 for cost in costs)


def test_two_sweeps_on_one_folder_share_its_work(place, expected):
    backwards = [*SWEEP[:-1], "loss.alpha=1,0.5"]
    both = [place.start(*told) for told in (SWEEP, backwards)]
    for command in both:
        command.wait()
    check_whole(place.outputs)
    assert numbers(place.sweep) == expected[0]
    said = "".join(command.said for command in both)
    assert said.count("training the teacher") == 1
    assert said.count("finished before, skipped") == 2


def test_a_killed_loader_process_is_named_and_the_run_resumes(place, expected):
    told = [*SWEEP, "data.num_workers=1"]
    command = place.start(*told)
    command.until(lambda: list(place.sweep.glob("*/checkpoints/last.ckpt")))
    os.kill(children(command.process.pid)[0], signal.SIGKILL)
    command.wait(expect=1)
    assert "a loader process (data.num_workers=1) was killed" in command.said
    assert "resuming from step" in place.run(*told)
    check_whole(place.outputs)
    found, wanted = (
        sorted(one.values(), key=lambda job: job["key"])
        for one in (numbers(place.sweep), expected[0])
    )
    assert found == wanted


def be_impatient():
    """Of a server that is asked for a new run, or to take what an old one has left."""
    wandb_run.INIT_TIMEOUT = wandb_run.FINISH_TIMEOUT = 5


@pytest.mark.long
@pytest.mark.parametrize("fault", ["hang", "close"])
def test_a_tracker_whose_server_fails_half_way_costs_no_job_and_no_curve(
    place, expected, wandb_server, fault
):
    server, key = wandb_server
    told = [*SWEEP, "logger=wandb"]
    command = place.start(*told, before=be_impatient, WANDB_MODE="online", **key)
    command.until(lambda: len(steps(place)) > EVERY)
    server.fail(fault)
    command.wait(timeout=90)
    assert numbers(place.sweep) == expected[0]
    assert "the samples were not logged; they are in samples.json" in command.said

    (later,) = re.findall(r"stored on disk; upload it with `(wandb sync .*)`", command.said)
    healthy = Server()
    sent = subprocess.run(
        [sys.executable, "-m", *later.split()],
        cwd=place.sweep,  # it notes that it was called
        env={**environment(), **key, "WANDB_BASE_URL": healthy.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    healthy.fail("close")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    ((_, lines),) = healthy.history.items()
    assert [json.loads(line)["_step"] for line in lines] == list(range(STEPS))


def test_a_lock_of_a_dead_process_on_this_machine_is_taken_over_at_once(halfway, expected):
    place, _ = halfway
    command = place.start()
    held = None
    while held is None:  # a job that is done releases its lock before the signal arrives
        command.signal(signal.SIGCONT)
        command.until(lambda: next(place.outputs.glob("artifacts/job/*.lock"), None))
        command.signal(signal.SIGSTOP)
        held = next(place.outputs.glob("artifacts/job/*.lock"), None)
    command.signal(signal.SIGKILL)
    command.wait(expect=None)
    assert held.exists()
    start = time.monotonic()
    place.run()
    assert time.monotonic() - start < 40
    assert numbers(place.sweep) == expected[0]
