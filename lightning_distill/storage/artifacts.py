"""Artifacts: trained teachers, tokenizers, tokenized data, cached predictions, generated text.

An artifact is a folder `<outputs>/artifacts/<kind>/<key>/`. The key is a hash of everything that
determines its content, so a changed setting makes another artifact and never overwrites one.
Under a lock it is written to `<key>.partial/`, then renamed. Its manifest holds a checksum of each
file, which is verified before each use; a damaged artifact is made again.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_distill.distributed import process_group
from lightning_distill.errors import ConfigError
from lightning_distill.screen import shown
from lightning_distill.storage.locks import locked

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def key_of(made_from: dict[str, Any]) -> str:
    """16 hexadecimal digits that change whenever anything in `made_from` does; 2.0 is 2.

    A class or function of this package counts by its name alone, so that moving it to another
    module keeps every key.
    """
    content = json.dumps(_canonical(made_from), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        content = {str(key): _canonical(one) for key, one in value.items()}
        # A config names a class or function as `_target_`, or as the `path` of a lookup of Hydra's.
        is_lookup = str(content.get("_target_")).startswith("hydra.utils.get_")
        for key in ("_target_", "path") if is_lookup else ("_target_",):
            if str(content.get(key)).startswith("lightning_distill."):
                content[key] = content[key].rpartition(".")[2]
        return content
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def hash_of(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


Make = Callable[[Path], dict[str, Any] | None]  # writes a folder; returns the manifest's content


@dataclass(frozen=True)
class Artifact:
    folder: Path
    key: str
    seconds: float  # that making it took now; 0 if it existed

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
        """The artifact if it exists and is undamaged. All ranks call this."""
        return process_group.broadcast(
            self._find(kind, made_from) if process_group.is_rank_zero() else None
        )

    def get(
        self, kind: str, made_from: dict[str, Any], make: Make, on_all_ranks: bool = False
    ) -> Artifact:
        """The artifact, made by `make(folder)` if it does not exist. All ranks call this.

        Processes that need the same artifact make it once: one makes it, the others wait.
        `make` may resume from files that an interrupted attempt left in the folder.
        on_all_ranks: all ranks of the job call `make`; else only rank 0.
        """
        if not process_group.is_rank_zero():
            return _follow_rank_zero(make)

        def announce_and_make(folder: Path) -> dict[str, Any] | None:
            process_group.broadcast(folder)
            return make(folder)

        artifact = self._find(kind, made_from) or self._make(
            kind, made_from, announce_and_make if on_all_ranks else make
        )
        return process_group.broadcast(artifact)

    def _find(self, kind: str, made_from: dict[str, Any]) -> Artifact | None:
        folder = self.folder(kind, made_from)
        return None if find_damage(folder) else Artifact(folder, folder.name, 0.0)

    def _make(self, kind: str, made_from: dict[str, Any], make: Make) -> Artifact:
        folder = self.folder(kind, made_from)
        lock = folder.with_name(f"{folder.name}.lock")
        with locked(lock, f"the {kind} {folder.name}") as check_lock:
            if artifact := self._find(kind, made_from):  # another process made it meanwhile
                return artifact
            partial = _prepare_partial(folder)
            start = time.perf_counter()
            content = _make_in(partial, make)
            seconds = time.perf_counter() - start
            check_lock()
            write_manifest(partial, kind, made_from, content)
            os.replace(partial, folder)
        return Artifact(folder, folder.name, seconds)


def _follow_rank_zero(make: Make) -> Artifact:
    """Rank 0 broadcasts the folder if all ranks are to make the artifact, then the artifact."""
    message: Any = process_group.broadcast(None)
    if isinstance(message, Path):
        make(message)
        message = process_group.broadcast(None)
    assert isinstance(message, Artifact)
    return message


def _prepare_partial(folder: Path) -> Path:
    """The folder to make an artifact in, with the undamaged files of an earlier attempt."""
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.is_symlink():
        partial.unlink()
    if folder.exists():
        _set_aside(folder, partial)
    partial.mkdir(exist_ok=True)
    for file in partial.rglob("*"):
        # Half-written files of a killed process; and links, whose targets would be overwritten.
        if file.is_symlink() or (file.suffix == ".partial" and file.is_file()):
            file.unlink()
    return partial


def _make_in(partial: Path, make: Make) -> dict[str, Any] | None:
    try:
        return make(partial)
    except ConfigError:
        if not any(partial.iterdir()):  # else the corrected command resumes from its files
            partial.rmdir()
        raise


def write_atomic(file: Path, data: bytes) -> None:
    """Replace a file atomically: a reader sees the old content or the new, also after an error."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error


def find_damage(folder: Path) -> list[str]:
    """The files whose checksum is not the manifest's; the manifest if it is not readable."""
    try:
        files = read_manifest(folder)["files"]
    except (OSError, ValueError):
        return [MANIFEST]
    return [name for name, digest in files.items() if not _matches(folder / name, digest)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises OSError if there is none, and ValueError if it is not as `write_manifest` writes it,
    or lists a file outside the folder."""
    manifest = json.loads((folder / MANIFEST).read_text())
    types: dict[str, type] = {"kind": str, "made_from": dict, "content": dict, "files": dict}
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is not a JSON object")
    for key, expected in types.items():
        if not isinstance(manifest.get(key), expected):
            raise ValueError(f"the manifest lacks {key}")
    root = folder.resolve()
    for name, digest in manifest["files"].items():
        file = root / name
        if not isinstance(digest, str) or "\0" in name or ".." in file.parts:
            raise ValueError(f"{name!r} is not a file of the artifact")
        # The file itself may be a link, as its content is verified; a parent folder may not.
        if file == root or file.parent.resolve() != file.parent or root not in file.parents:
            raise ValueError(f"{name!r} is not in the artifact's folder")
    return manifest


def _matches(file: Path, digest: str) -> bool:
    try:
        return file.is_file() and hash_of(file) == digest
    except OSError:
        return False


def _set_aside(folder: Path, partial: Path) -> None:
    """Turn a damaged artifact into an unfinished one without its damaged files."""
    damaged = find_damage(folder)
    log.warning("%s is damaged (%s) and will be created again", shown(folder), ", ".join(damaged))
    if MANIFEST in damaged:  # no checksums to verify the other files with
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        return
    shutil.rmtree(partial, ignore_errors=True)
    # Before the rename: `make` trusts the files of an unfinished artifact.
    for file in (folder / name for name in damaged):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
    os.replace(folder, partial)
    (partial / MANIFEST).unlink()


def write_manifest(
    folder: Path, kind: str, made_from: dict[str, Any], content: dict[str, Any] | None
) -> None:
    """Write the manifest, with a checksum of every file in the folder."""
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
