"""A training's state on the disk: the last one, and until the end the one before it.

A checkpoint is written under another name and read back before it takes the place of the last one,
so a process that is killed, or a disk that is full, leaves one that can be gone on from.
"""

import errno
import logging
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

LAST, BEFORE = "last.ckpt", "before.ckpt"
DAMAGE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError)  # as readers say it


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads tensors and numbers alone, and writes as said above."""

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(path, map_location, weights_only=True)
        return found

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        file = Path(path)
        partial = file.with_name(f"{file.name}.partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(checkpoint, partial)
            if file.exists():
                os.replace(file, file.with_name(BEFORE))
            os.replace(partial, file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(file)) from error


def _write(checkpoint: dict[str, Any], file: Path) -> None:
    """Raises OSError where what is on the disk afterwards is not whole."""
    try:
        with file.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # as torch says it that a write has failed
        number = errno.EIO if shutil.disk_usage(file.parent).free else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error
    if not is_whole(file):
        raise OSError(errno.EIO, "what was written cannot be read back")


def is_whole(file: Path) -> bool:
    """Whether it can be read, and all in it is as it was written, by torch's checksums.

    Raises ConfigError where it is a pickle that could run any code.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(file, "cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise ConfigError(
            f"{file} holds more than tensors and numbers, and could run any code when it is read. "
            "It is not from this command; remove it, and training starts anew."
        ) from error
    except (*DAMAGE, zipfile.BadZipFile, zlib.error):
        return False
    return True


def newest(folder: Path) -> Path | None:
    """The last checkpoint that is whole."""
    both = (folder / LAST, folder / BEFORE)
    return next((file for file in both if file.exists() and is_whole(file)), None)


def settle(folder: Path) -> None:
    """Makes the newest whole checkpoint the last one, and removes what is damaged."""
    last, kept = folder / LAST, newest(folder)
    if last.exists() and kept != last:
        then = "going on from the one before it" if kept else "training starts anew"
        log.warning("%s is damaged: %s", last, then)
    if kept is None:
        for file in (last, folder / BEFORE):
            file.unlink(missing_ok=True)
    elif kept != last:
        os.replace(kept, last)


def step_of(checkpoint: Path) -> int:
    """How many steps were made before it."""
    found: int = torch.load(checkpoint, "cpu", weights_only=True, mmap=True)["global_step"]
    return found
