"""Checkpoints on disk: `last.ckpt`, until the training ends the one before it, and with
student.keep=best the best weights.

A checkpoint is written to a temporary file, verified, then renamed atomically. A killed process or
a full disk therefore leaves a checkpoint to resume from.
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
from torch import Tensor

from lightning_distill.errors import ConfigError
from lightning_distill.screen import shown

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "before.ckpt", "best.ckpt"
# What torch and zipfile raise for a damaged file.
DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes atomically, and reads with `weights_only=True`."""

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(path, map_location, weights_only=True)
        return checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        file = Path(path)
        partial = file.with_name(f"{file.name}.partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(checkpoint, partial)
            if file.name == LAST and file.exists():
                os.replace(file, file.with_name(PREVIOUS))
            os.replace(partial, file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(file)) from error


def _write(checkpoint: dict[str, Any], file: Path) -> None:
    """Raises OSError where the written file cannot be read back."""
    try:
        with file.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # how torch reports a failed write
        number = errno.EIO if shutil.disk_usage(file.parent).free else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error
    if not is_intact(file):
        raise OSError(errno.EIO, "the written file cannot be read back")


def is_intact(file: Path) -> bool:
    """Whether a checkpoint can be read and matches its checksums.

    Raises ConfigError for a pickle that could run code.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(file, "cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise ConfigError(
            f"{file} holds more than tensors and numbers, and could run any code when it is read. "
            "This command has not written it. Remove it; training then starts anew."
        ) from error
    except DAMAGE:
        return False
    return True


def newest(folder: Path) -> Path | None:
    """The last checkpoint that is intact."""
    files = (folder / LAST, folder / PREVIOUS)
    return next((file for file in files if file.exists() and is_intact(file)), None)


def restore_newest(folder: Path) -> None:
    """Makes the newest intact checkpoint the last one, and removes damaged ones.

    Training cannot resume from a checkpoint whose best weights are gone: another validation's
    would be kept in their place.
    """
    last, best, intact = folder / LAST, folder / BEST, newest(folder)
    if best.exists() and not is_intact(best):
        log.warning("%s is damaged", shown(best))
        best.unlink()
    if intact and _has_best_weights(intact) and not best.exists():
        log.warning("%s is not there any more: training starts anew", shown(best))
        intact = None
    elif last.exists() and intact != last:
        consequence = "resuming from the one before it" if intact else "training starts anew"
        log.warning("%s is damaged: %s", shown(last), consequence)
    if intact is None:
        for name in (LAST, PREVIOUS, BEST):
            (folder / name).unlink(missing_ok=True)
    elif intact != last:
        os.replace(intact, last)


def _has_best_weights(checkpoint: Path) -> bool:
    """Whether weights were saved in BEST before it."""
    callbacks = _read(checkpoint).get("callbacks", {})
    return callbacks.get("BestWeights", {}).get("step") is not None


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps before it."""
    step: int = _read(checkpoint)["global_step"]
    return step


def best_of(checkpoint: Path) -> tuple[float, int]:
    """The validation nll of the best weights, and the optimizer steps before it."""
    content = _read(checkpoint)
    return content["validation_nll"], content["global_step"]


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """Those that were trained, on the CPU."""
    weights: dict[str, Tensor] = _read(checkpoint)["state_dict"]
    return weights


def _read(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, "cpu", weights_only=True, mmap=True)
    return content
