"""What every export format declares."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_distill.experiment.finished_run import FinishedRun


@dataclass(frozen=True)
class ExportSettings:
    """formats: names of formats. converter: path of llama.cpp's convert_hf_to_gguf.py.
    license: as the hub names it. push: repository on the hub. private: whether to create that
    repository as a private one.
    """

    formats: tuple[str, ...] = ("huggingface",)
    converter: Path | None = None
    license: str | None = None
    push: str | None = None
    private: bool = True


@dataclass(frozen=True)
class Format:
    """A format of `export.formats`.

    check: raises ConfigError if the format does not support the student; called before anything
    is written. write: writes the student to a folder. requires: packages, which the extra `name`
    installs. silenced: loggers of libraries, raised to level ERROR during `write`.
    """

    name: str
    check: Callable[[FinishedRun, ExportSettings], None]
    write: Callable[[FinishedRun, Path, ExportSettings], None]
    requires: tuple[str, ...] = ()
    silenced: tuple[str, ...] = ()
