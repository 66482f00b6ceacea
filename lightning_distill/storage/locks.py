"""Lock files: one process at a time, also across machines that share a file system."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

LEASE = 60.0  # seconds without a heartbeat after which a lock of another machine is free
UNREADABLE_GRACE = 2.0  # seconds after which filelock frees a lock file without an owner


def is_held(file: Path) -> bool:
    """Whether a live process holds this lock."""
    try:
        with locked(file, str(file), wait=False):
            return False
    except ConfigError:
        return True


@contextmanager
def locked(file: Path, name: str, wait: bool = True) -> Iterator[Callable[[], None]]:
    """Hold a lock file.

    The lock of a process that died is taken over: at once on the same machine, after LEASE on
    another, and after some seconds if it died before it wrote its name.
    Raises ConfigError if another process holds it and `wait` is false. name: for messages.
    Yields a function that raises RuntimeError if another process took over this lock, which happens
    if this process was suspended for longer than LEASE.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(file, lease_duration=LEASE)
    if not _try_acquire(lease, 0.0) and not (
        _free_ownerless(file) and _try_acquire(lease, 2 * UNREADABLE_GRACE)
    ):
        owner = lease.owner
        holder = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
        if not wait:
            raise ConfigError(f"{name} is in use by {holder}.")
        log.info("waiting for %s, which is in use by %s", name, holder)
        while not _try_acquire(lease, LEASE):
            _free_ownerless(file)

    def check() -> None:
        if lease.compromise:
            raise RuntimeError(f"the lock of {name} was taken over by another process; run again")

    try:
        yield check
    finally:
        lease.release()


def _try_acquire(lease: SoftFileLease, seconds: float) -> bool:
    try:
        lease.acquire(timeout=seconds, poll_interval=0.2)
    except Timeout:
        return False
    return True


def _free_ownerless(file: Path) -> bool:
    """Make filelock free an empty lock file after UNREADABLE_GRACE; return whether it is empty.

    A process that dies between creating the file and writing its name leaves it empty. filelock
    takes an empty lock for one of its oldest format, held as long as it exists, but frees one that
    stays unreadable. The newline written here is harmless to an owner that writes its name later.
    """
    try:
        status = file.lstat()
        if status.st_size or not stat.S_ISREG(status.st_mode):
            return False
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    except OSError:  # released meanwhile, or not writable
        return False
    with open(descriptor, "wb") as stream:
        stream.write(b"\n")
    return True
