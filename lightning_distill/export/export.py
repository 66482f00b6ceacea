"""`stage=export`: a finished run's student, as files that other programs read.

All is written into `<folder>.partial/` and renamed when complete: what has the final name is whole.
A folder that holds anything else than what an export left there is never written over.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from omegaconf import DictConfig, ListConfig

from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.storage.artifacts import MANIFEST, find_damage, read_manifest, write_manifest
from lightning_distill.storage.locks import locked
from lightning_distill.sweeps.job import Job

log = logging.getLogger(__name__)

FORMATS = ("huggingface", "gguf", "onnx")  # each a module with `NEEDS`, `check` and `write`
CHATTY = ("gguf", "torch.onnx", "onnxscript", "onnx_ir")


def export(cfg: DictConfig, job: Job) -> None:
    """`stage=export export.run=<its folder>`. Raises ConfigError before anything is written."""
    settings = cfg.export
    if settings.run is None:
        raise ConfigError("stage=export needs export.run=<the folder of a finished run>.")
    formats = _formats(settings.formats)
    from lightning_distill.export import card, hub
    from lightning_distill.export.finished_run import Run

    run = Run.read(Path(settings.run), cfg.paths.outputs)
    folder = run.folder / "export" if settings.folder is None else Path(settings.folder)
    _check_ours(folder)
    for one in formats:
        one.check(run, settings)
    if settings.push is not None:
        hub.check(settings.push)

    with locked(folder.with_name(f"{folder.name}.lock"), f"the export {folder}") as held:
        _check_ours(folder)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # that a killed export left
        partial.mkdir(parents=True)
        try:
            for one in formats:
                with _quiet():
                    one.write(run, partial, settings)
            (partial / "README.md").write_text(card.write(run, settings), encoding="utf-8")
            made_from = {"run": str(run.folder), "key": run.results["key"]}
            write_manifest(partial, "export", made_from, {"formats": list(settings.formats)})
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        held()
        _replace(partial, folder)
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    log.info("%s: %s", folder, ", ".join(file for file in files if file != MANIFEST))
    if settings.push is not None:
        log.info("pushed to %s", hub.push(folder, settings.push, settings.private))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of each step of their own."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def _formats(names: object) -> list[ModuleType]:
    if not isinstance(names, list | ListConfig) or not names:
        raise ConfigError(f"export.formats={names} must be a list, as in [huggingface].")
    for name in names:
        if name not in FORMATS:
            raise unknown_name("export.formats", name, FORMATS)
    found = [import_module(f"lightning_distill.export.{name}") for name in dict.fromkeys(names)]
    for name, one in zip(dict.fromkeys(names), found, strict=True):
        if missing := [package for package in one.NEEDS if find_spec(package) is None]:
            raise ConfigError(
                f"export.formats={name} needs {', '.join(missing)}: "
                f"pip install 'lightning_distill[{name}]'."
            )
    return found


def _check_ours(folder: Path) -> None:
    """Raises ConfigError where writing the folder anew would take something of the user's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"export.folder={folder} is a file; choose another name.")
    there = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    if not there:
        return
    changed = find_damage(folder)
    if MANIFEST in changed:
        raise ConfigError(
            f"export.folder={folder} holds files that are not an export's; choose another folder."
        )
    own = ours(folder)
    theirs = sorted((there - own) | (set(changed) & there))
    if theirs:
        raise ConfigError(
            f"export.folder={folder} holds what was added or changed since it was exported "
            f"({', '.join(theirs[:5])}); move it away, or choose another folder."
        )


def ours(folder: Path) -> set[str]:
    """The files that an export left, by their names in the folder."""
    return {*read_manifest(folder)["files"], MANIFEST}


def _replace(partial: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
