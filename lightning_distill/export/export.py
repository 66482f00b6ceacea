"""`stage=export`: the student of a finished run, for other programs.

The export is written to `<folder>.partial/` and renamed when complete, so an export is complete or
absent. A folder with files that no export wrote, or that were changed since, is never overwritten.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_distill.config.settings import Settings
from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.experiment.finished_run import FinishedRun, read_run
from lightning_distill.export import gguf, hub, huggingface, onnx
from lightning_distill.export.card import model_card
from lightning_distill.export.format import ExportSettings, Format
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import MANIFEST, find_damage, read_manifest, write_manifest
from lightning_distill.storage.locks import locked
from lightning_distill.sweeps.job import Job

log = logging.getLogger(__name__)

FORMATS = {format.name: format for format in (huggingface.FORMAT, gguf.FORMAT, onnx.FORMAT)}


def export(settings: Settings, job: Job) -> None:
    """`stage=export export.run=<folder>`.

    Raises ConfigError before anything is written if the run, the folder or a format is unsuitable.
    """
    node = settings["export"]
    names = node["formats"]
    if not isinstance(names, list) or not names:
        raise ConfigError(f"export.formats={names} must be a list, such as [huggingface].")
    request = ExportSettings(
        formats=tuple(dict.fromkeys(map(str, names))),
        converter=None if node["converter"] is None else Path(node["converter"]),
        license=node["license"],
        push=node["push"],
        private=node["private"],
    )
    formats = select_formats(request.formats)
    run = read_run("export.run", Path(node["run"]), settings)
    folder = run.folder / "export" if node["folder"] is None else Path(node["folder"])
    export_run(run, folder, formats, request)


def select_formats(names: Sequence[str]) -> list[Format]:
    """Raises ConfigError if a name is unknown or the packages of its format are not installed."""
    for name in names:
        if name not in FORMATS:
            raise unknown_name("export.formats", name, FORMATS)
        if missing := [package for package in FORMATS[name].requires if find_spec(package) is None]:
            raise ConfigError(
                f"export.formats={name} needs {', '.join(missing)}: "
                f"pip install 'lightning_distill[{name}]'."
            )
    return [FORMATS[name] for name in names]


def export_run(
    run: FinishedRun, folder: Path, formats: list[Format], settings: ExportSettings
) -> None:
    """Writes the formats and the model card to `folder`, and uploads it to `settings.push`."""
    _check_replaceable(folder)
    for format in formats:
        format.check(run, settings)
    if settings.push is not None:
        hub.check_repository(settings.push)
    with locked(folder.with_name(f"{folder.name}.lock"), f"the export {folder}") as check_lock:
        _check_replaceable(folder)
        with _partial_folder(folder) as partial:
            _write(run, partial, formats, settings)
            check_lock()
            _replace(partial, folder)
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    log.info("%s: %s", shown(folder), ", ".join(file for file in files if file != MANIFEST))
    if settings.push is not None:
        log.info("pushed to %s", hub.upload(folder, settings.push, settings.private))


def _write(run: FinishedRun, folder: Path, formats: list[Format], settings: ExportSettings) -> None:
    for format in formats:
        with _silenced(format.silenced):
            format.write(run, folder, settings)
    (folder / "README.md").write_text(model_card(run, settings), encoding="utf-8")
    made_from: dict[str, Any] = {"run": str(run.folder), "key": run.results["key"]}
    write_manifest(folder, "export", made_from, {"formats": list(settings.formats)})


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A new `<folder>.partial`, removed if an exception is raised."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _silenced(names: Sequence[str]) -> Iterator[None]:
    """Hides messages of these loggers below level ERROR."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _check_replaceable(folder: Path) -> None:
    """Raises ConfigError if replacing the folder would lose files of the user."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"export.folder={folder} is a file; choose another name.")
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    if not files:
        return
    damaged = set(find_damage(folder))
    if MANIFEST in damaged:
        raise ConfigError(
            f"export.folder={folder} holds files that no export wrote; choose another folder."
        )
    exported = {*read_manifest(folder)["files"], MANIFEST}
    if changed := sorted((files - exported) | (damaged & files)):
        raise ConfigError(
            f"export.folder={folder} holds files that were added or changed since it was exported "
            f"({', '.join(changed[:5])}); move it away, or choose another folder."
        )


def _replace(partial: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
