"""The files that a setting such as `data.path` names."""

import glob
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FORMATS = (".txt", ".jsonl", ".jsonlines", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
PACKAGE = "package:"  # begins the name of a file in an installed package, `package:name/file`


def path_of(name: str) -> Path:
    """The path that a name stands for, with `~` and `package:` replaced.

    A package that is not installed leaves the name as it is, which no file has.
    """
    if not name.startswith(PACKAGE):
        return Path(name).expanduser()
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)  # not imported, as it may need others
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / file if folders else Path(name)


def names_of(given: Any) -> list[str]:
    """A list of one name, or of several."""
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    return [str(name) for name in (given if is_list else [given])]


def input_files(given: Any) -> list[Path]:
    """The files of a path: of a file, a folder, a glob (`*.jsonl`, `**`), or a list of these.

    Each once, in the order of the list, and by name below a folder, without hidden files, which
    systems and notebooks leave there. Empty where there is none.
    """
    files: dict[Path, None] = {}
    for name in names_of(given):
        path = path_of(name)
        paths = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
        for one in sorted(paths):
            files |= dict.fromkeys(visible_below(one) if one.is_dir() else [one])
    return [file for file in files if file.is_file()]


def visible_below(folder: Path) -> list[Path]:
    """Files and folders at any depth; none whose name, or whose folder's, begins with a dot."""
    paths = sorted(folder.rglob("*"))
    return [p for p in paths if not any(x.startswith(".") for x in p.relative_to(folder).parts)]


def missing_input(given: Any) -> str | None:
    """The first name that nothing has."""
    names = (name for name in names_of(given) if not path_of(name).exists())
    return next((name for name in names if not input_files(name)), None)


def format_of(file: Path) -> str:
    """The suffix before that of a compression: `.jsonl` of `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS else suffixes[-1]


def may_be_on_hub(name: str) -> bool:
    """Whether it may be a data set or a model of the hub: `name` or `owner/name`."""
    is_file = name.startswith((".", "/", "~", PACKAGE)) or format_of(Path(name)) in FORMATS
    return not is_file and not set(name) & set("*?[") and name.count("/") < 2
