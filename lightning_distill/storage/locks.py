"""One process at a time, on a file system that several machines share too."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

LEASE = 60.0  # seconds without a sign of life after which another machine's lock is free
NAMELESS = 2.0  # seconds that filelock gives the owner of an unreadable lock


def is_held(file: Path) -> bool:
    """Whether a process that is alive, as far as can be told, holds this lock."""
    try:
        with locked(file, str(file), wait=False):
            return False
    except ConfigError:
        return True


@contextmanager
def locked(file: Path, what: str, wait: bool = True) -> Iterator[Callable[[], None]]:
    """Holds a file, whose making and removing is the lock.

    One whose process died is taken over: at once on the same machine, after LEASE on another,
    and after some seconds where it died before it could write its name.
    Raises ConfigError where another holds it, and it is not to be waited for.
    Yields a function that raises RuntimeError where that happened to this process, which then was
    stopped for so long that another may have done its work.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(file, lease_duration=LEASE)
    if not _acquired(lease, 0.0) and not (_free_nameless(file) and _acquired(lease, 2 * NAMELESS)):
        owner = lease.owner
        whose = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
        if not wait:
            raise ConfigError(f"{what} is in use by {whose}.")
        log.info("waiting for %s, which %s is making", what, whose)
        while not _acquired(lease, LEASE):
            _free_nameless(file)

    def check() -> None:
        if lease.compromise:
            raise RuntimeError(f"the lock of {what} was taken over by another process; run again")

    try:
        yield check
    finally:
        lease.release()


def _acquired(lease: SoftFileLease, seconds: float) -> bool:
    try:
        lease.acquire(timeout=seconds, poll_interval=0.2)
    except Timeout:
        return False
    return True


def _free_nameless(file: Path) -> bool:
    """Has filelock free a lock without a name after NAMELESS; whether it is one.

    It takes an empty lock for one of its oldest versions, held as long as it is there, and frees
    one that stays unreadable. A line end does no harm to a name, be it there or still to come.
    """
    try:
        there = file.lstat()
        if there.st_size or not stat.S_ISREG(there.st_mode):
            return False
        lock = os.open(file, os.O_WRONLY | os.O_APPEND)
    except OSError:  # it is free by now, or not ours to write to
        return False
    with open(lock, "wb") as stream:
        stream.write(b"\n")
    return True
