"""Checkpoints on disk: atomic writes, damage, full disks, and code in a pickle."""

import logging
import os
import random
import subprocess

import pytest
import torch

from lightning_distill.errors import ConfigError
from lightning_distill.training.checkpoint_io import (
    LAST,
    PREVIOUS,
    AtomicCheckpointIO,
    newest,
    restore_newest,
    step_of,
)


def state(step, size=1000):
    return {"global_step": step, "weights": torch.arange(size) + step}


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of steps 3 and 6."""
    for step in (3, 6):
        AtomicCheckpointIO().save_checkpoint(state(step), tmp_path / LAST)
    return tmp_path


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a separate disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk is not allowed")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def damage(file, how, rng):
    data = bytearray(file.read_bytes())
    position = rng.randrange(len(data))
    if how == "truncated":
        del data[position:]
    else:
        data[position] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def test_the_previous_checkpoint_is_kept(two):
    assert step_of(two / LAST) == 6
    assert step_of(two / PREVIOUS) == 3
    assert newest(two) == two / LAST
    assert len(list(two.iterdir())) == 2


def test_a_checkpoint_truncated_at_any_byte_is_replaced_by_the_previous_one(two, caplog):
    rng = random.Random(0)
    for _ in range(40):
        AtomicCheckpointIO().save_checkpoint(state(9), two / LAST)
        os.replace(two / LAST, two / "whole")
        (two / LAST).write_bytes((two / "whole").read_bytes())
        damage(two / LAST, "truncated", rng)
        assert newest(two) == two / PREVIOUS
        restore_newest(two)
        assert step_of(two / LAST) == 6
    assert "last.ckpt is damaged: resuming from the one before it" in caplog.text


def test_a_flipped_bit_changes_no_value_that_is_read(two):
    rng, whole = random.Random(0), (two / LAST).read_bytes()
    for _ in range(200):
        (two / LAST).write_bytes(whole)
        damage(two / LAST, "flipped", rng)
        if newest(two) == two / LAST:  # the bit is in no value: in padding or a date
            checkpoint = AtomicCheckpointIO().load_checkpoint(two / LAST)
            assert checkpoint["global_step"] == 6
            assert torch.equal(checkpoint["weights"], state(6)["weights"])


def test_with_two_damaged_checkpoints_training_starts_anew(two, caplog):
    for name in (LAST, PREVIOUS):
        damage(two / name, "truncated", random.Random(0))
    restore_newest(two)
    assert not any(two.iterdir())
    assert "training starts anew" in caplog.text


def test_a_kill_between_the_two_renames_loses_nothing(two):
    os.replace(two / LAST, two / PREVIOUS)
    restore_newest(two)
    assert step_of(two / LAST) == 6


def test_a_full_disk_keeps_the_last_checkpoint(small_disk):
    AtomicCheckpointIO().save_checkpoint(state(3), small_disk / LAST)
    with pytest.raises(OSError, match="No space left on device") as caught:
        AtomicCheckpointIO().save_checkpoint(state(6, 10**6), small_disk / LAST)
    assert caught.value.filename == str(small_disk / LAST)
    assert [file.name for file in small_disk.iterdir()] == [LAST]
    assert step_of(small_disk / LAST) == 3


class Mark:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_checkpoint_that_would_run_code_is_refused(two, caplog):
    caplog.set_level(logging.INFO)
    torch.save(state(9) | {"callbacks": Mark(two / "ran")}, two / LAST)
    for read in (
        restore_newest,
        newest,
        lambda folder: AtomicCheckpointIO().load_checkpoint(folder / LAST),
    ):
        with pytest.raises((ConfigError, Exception), match=r"any code|[Ww]eights.only"):
            read(two)
    assert not (two / "ran").exists()
    assert (two / LAST).exists()
