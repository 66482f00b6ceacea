"""What is worth making once: trained teachers, tokenizers, tokenized data.

An artifact is a folder `<outputs>/artifacts/<kind>/<key>/`. Its key is a hash of everything that
determines its content, so a change of any setting makes another artifact and never overwrites one.
It is written under a lock into `<key>.partial/` and renamed when complete: what has the final name
is whole. Its manifest holds a checksum of every file, which is compared before each use; a damaged
file is named and made again.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.storage.locks import locked

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PACKAGE_PATH = re.compile(r"lightning_distill(\.\w+)+")  # as in `_target_`


def key_of(made_from: dict[str, Any]) -> str:
    """16 hexadecimal digits that change whenever anything in `made_from` does; 2.0 is 2.

    A class or function of this package counts by its name alone, so that moving it to another
    module keeps every key.
    """
    content = json.dumps(_alike(made_from), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _alike(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _alike(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_alike(one) for one in value]
    if isinstance(value, str) and PACKAGE_PATH.fullmatch(value):
        return value.rpartition(".")[2]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def hash_of(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Artifact:
    folder: Path
    key: str
    seconds: float  # spent on making it now; 0 where it was there already

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)


class Store:
    """The artifacts below one outputs folder, shared by all jobs and processes that use it."""

    def __init__(self, outputs: str | Path) -> None:
        self.root = Path(outputs).resolve() / "artifacts"

    def folder(self, kind: str, made_from: dict[str, Any]) -> Path:
        return self.root / kind / key_of(made_from)

    def find(self, kind: str, made_from: dict[str, Any]) -> Artifact | None:
        """The artifact if it exists and is undamaged."""
        return process_group.broadcast(
            self._find(kind, made_from) if process_group.is_rank_zero() else None
        )

    def _find(self, kind: str, made_from: dict[str, Any]) -> Artifact | None:
        folder = self.folder(kind, made_from)
        return None if find_damage(folder) else Artifact(folder, folder.name, 0.0)

    def get(
        self,
        kind: str,
        made_from: dict[str, Any],
        make: Callable[[Path], dict[str, Any] | None],
        together: bool = False,
    ) -> Artifact:
        """The artifact, made by `make(folder)` unless it exists; made once however many ask.

        `make` may find what an interrupted attempt left in its folder, and go on from there. What
        it returns is noted in the manifest, under `content`.
        together: all ranks of the job make it; else rank 0 does, and the others wait.
        """
        if process_group.is_rank_zero():
            return process_group.broadcast(
                self._get(kind, made_from, _called(make) if together else make)
            )
        told: Any = process_group.broadcast(None)
        while isinstance(told, Path):
            make(told)
            told = process_group.broadcast(None)
        assert isinstance(told, Artifact)
        return told

    def _get(
        self,
        kind: str,
        made_from: dict[str, Any],
        make: Callable[[Path], dict[str, Any] | None],
    ) -> Artifact:
        if found := self._find(kind, made_from):
            return found
        folder = self.folder(kind, made_from)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), f"the {kind} {folder.name}") as held:
            if found := self._find(kind, made_from):  # made by another process while we waited
                return found
            partial = folder.with_name(f"{folder.name}.partial")
            if partial.is_symlink():  # to where nothing of ours is
                partial.unlink()
            if folder.exists():
                _set_aside(folder, partial)
            partial.mkdir(exist_ok=True)
            for file in partial.rglob("*"):
                # What a killed process was writing, and links, which writing would go through.
                if file.is_symlink() or (file.suffix == ".partial" and file.is_file()):
                    file.unlink()
            start = time.perf_counter()
            try:
                content = make(partial)
            except ConfigError:
                if not any(partial.iterdir()):  # else the mended command goes on from it
                    partial.rmdir()
                raise
            seconds = time.perf_counter() - start
            held()
            write_manifest(partial, kind, made_from, content)
            os.replace(partial, folder)
        return Artifact(folder, folder.name, seconds)


def _called(
    make: Callable[[Path], dict[str, Any] | None],
) -> Callable[[Path], dict[str, Any] | None]:
    """Calls the other ranks to it first."""

    def called(folder: Path) -> dict[str, Any] | None:
        process_group.broadcast(folder)
        return make(folder)

    return called


def write_atomic(file: Path, data: bytes) -> None:
    """A reader sees the old file or the new one; a full disk leaves nothing of the new one."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error


def find_damage(folder: Path) -> list[str]:
    """The files that are not what the manifest says; the manifest itself if it is not readable."""
    try:
        files = read_manifest(folder)["files"]
    except (OSError, ValueError):
        return [MANIFEST]
    return [name for name, digest in files.items() if not _matches(folder / name, digest)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises OSError where there is none, ValueError where it is not as `write_manifest` writes
    it: its files are the folder's own, by no way around."""
    found = json.loads((folder / MANIFEST).read_text())
    parts: dict[str, type] = {"kind": str, "made_from": dict, "content": dict, "files": dict}
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    for part, kind in parts.items():
        if not isinstance(found.get(part), kind):
            raise ValueError(f"its {part} is none")
    here = folder.resolve()
    for name, digest in found["files"].items():
        whole = here / name
        if not isinstance(digest, str) or "\0" in name or ".." in whole.parts:
            raise ValueError(f"{name!r} is no file of it")
        # A file may be a link: its content is compared. A folder that is one leads elsewhere.
        if whole == here or whole.parent.resolve() != whole.parent or here not in whole.parents:
            raise ValueError(f"{name!r} is not in its folder")
    return found


def _matches(file: Path, digest: str) -> bool:
    try:
        return file.is_file() and hash_of(file) == digest
    except OSError:
        return False


def _set_aside(folder: Path, partial: Path) -> None:
    """Makes an unfinished artifact of a damaged one, so that only what is damaged is made again."""
    damaged = find_damage(folder)
    log.warning("%s is damaged (%s) and is made again", folder, ", ".join(damaged))
    if MANIFEST in damaged:  # then nothing says which of the other files are whole
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        return
    shutil.rmtree(partial, ignore_errors=True)
    # Before the folder is renamed: whoever goes on from an unfinished one takes it for whole.
    for file in (folder / name for name in damaged):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
    os.replace(folder, partial)
    (partial / MANIFEST).unlink()


def write_manifest(
    folder: Path, kind: str, made_from: dict[str, Any], content: dict[str, Any] | None
) -> None:
    """Of all that is in the folder, so that `damage` can tell when it changes."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    manifest = {
        "kind": kind,
        "made_from": made_from,
        "content": content or {},
        "versions": {p: version(p) for p in ("lightning_distill", "torch", "transformers")},
        "files": {str(f.relative_to(folder)): hash_of(f) for f in files},
    }
    data = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_atomic(folder / MANIFEST, data.encode())
