import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lightning_distill.errors import ConfigError
from lightning_distill.storage import locks
from lightning_distill.storage.artifacts import Store, key_of

MADE_FROM = {"steps": 3, "data": "abc"}


def write(folder: Path) -> None:
    with (folder.parent.parent.parent / "made.log").open("a") as log:
        log.write("made\n")
    (folder / "weights").write_text("1 2 3")


def ask(root: str, pause: float) -> None:
    def make(folder: Path) -> None:
        time.sleep(pause)
        write(folder)

    assert (Store(root).get("teacher", MADE_FROM, make).folder / "weights").read_text() == "1 2 3"


def die_while_making(root: str) -> None:
    def make(folder: Path) -> None:
        (folder / "weights").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    Store(root).get("teacher", MADE_FROM, make)


@pytest.fixture
def made(tmp_path):
    return lambda: (tmp_path / "made.log").read_text().split()


def test_an_artifact_is_made_once(tmp_path, made):
    first = Store(tmp_path).get("teacher", MADE_FROM, write)
    second = Store(tmp_path).get("teacher", MADE_FROM, write)
    assert first.folder == second.folder
    assert first.seconds > 0
    assert second.seconds == 0
    assert made() == ["made"]


def test_concurrent_processes_make_an_artifact_once(tmp_path, made):
    context = multiprocessing.get_context("spawn")
    asking = [context.Process(target=ask, args=(str(tmp_path), 0.3)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert [p.exitcode for p in asking] == [0, 0, 0]
    assert made() == ["made"]


def test_a_partial_artifact_of_a_killed_process_is_not_used(tmp_path, made):
    process = multiprocessing.get_context("spawn").Process(
        target=die_while_making, args=(str(tmp_path),)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.find("teacher", MADE_FROM) is None
    assert (store.get("teacher", MADE_FROM, write).folder / "weights").read_text() == "1 2 3"


@pytest.mark.parametrize("damage", ["changed", "removed", "manifest"])
def test_a_damaged_artifact_is_made_again(tmp_path, made, damage):
    store = Store(tmp_path)
    folder = store.get("teacher", MADE_FROM, write).folder
    if damage == "changed":
        (folder / "weights").write_text("1 2 4")
    elif damage == "removed":
        (folder / "weights").unlink()
    else:
        (folder / "manifest.json").write_text('{"files": ')
    assert store.find("teacher", MADE_FROM) is None
    assert (store.get("teacher", MADE_FROM, write).folder / "weights").read_text() == "1 2 3"
    assert made() == ["made", "made"]


def test_damaged_files_are_removed_before_the_artifact_is_set_aside(tmp_path, monkeypatch):
    store = Store(tmp_path)
    folder = store.get("teacher", MADE_FROM, write).folder
    (folder / "weights").write_text("1 2 4")

    def go_on(folder: Path) -> None:
        if not (folder / "weights").exists():
            write(folder)

    def rename_and_die(source, target):
        rename(source, target)
        raise KeyboardInterrupt

    rename = os.replace
    monkeypatch.setattr(os, "replace", rename_and_die)
    with pytest.raises(KeyboardInterrupt):
        store.get("teacher", MADE_FROM, go_on)
    monkeypatch.undo()
    assert (store.get("teacher", MADE_FROM, go_on).folder / "weights").read_text() == "1 2 3"


def test_a_failure_leaves_no_artifact(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        Store(tmp_path).get("teacher", MADE_FROM, fail)
    assert Store(tmp_path).find("teacher", MADE_FROM) is None


@pytest.mark.parametrize("begun", [[], ["weights"]])
def test_a_config_error_leaves_no_empty_folder_but_keeps_files(tmp_path, begun):
    def refuse(folder):
        for name in begun:
            (folder / name).write_text("1 2 3")
        raise ConfigError("no room")

    with pytest.raises(ConfigError, match="no room"):
        Store(tmp_path).get("teacher", MADE_FROM, refuse)
    left = {file.name for file in tmp_path.glob("artifacts/teacher/*.partial")}
    assert left == {f"{key_of(MADE_FROM)}.partial" for _ in begun}


def test_the_manifest_lists_settings_and_files(tmp_path):
    folder = Store(tmp_path).get("teacher", MADE_FROM, write).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["made_from"] == MADE_FROM
    assert folder.name == key_of(MADE_FROM)
    assert manifest["files"].keys() == {"weights"}


def test_any_changed_setting_is_another_artifact(tmp_path):
    keys = {key_of(MADE_FROM), key_of(MADE_FROM | {"steps": 4}), key_of({"steps": 3})}
    assert len(keys) == 3
    assert key_of(MADE_FROM) == key_of(dict(reversed(MADE_FROM.items())))
    assert key_of({"rates": [2, {"a": 0}]}) == key_of({"rates": (2.0, {"a": 0.0})})
    assert key_of({"rates": 2}) != key_of({"rates": 2.5})


def test_a_process_that_lost_its_lock_does_not_publish(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)

    def make(folder):
        (tmp_path / "artifacts" / "teacher" / f"{key_of(MADE_FROM)}.lock").unlink()
        time.sleep(0.5)

    with pytest.raises(RuntimeError, match="taken over by another process"):
        Store(tmp_path).get("teacher", MADE_FROM, make)
    assert Store(tmp_path).find("teacher", MADE_FROM) is None


INVALID_MANIFESTS = {
    "no object": [],
    "no files": {"files": []},
    "a list of files": {"files": ["weights"]},
    "no checksum": {"files": {"weights": 1}},
    "nothing": {"files": None},
    "no name": {"files": {"": "0"}},
    "a name with a zero": {"files": {"weights\0": "0"}},
    "the folder itself": {"files": {".": "0"}},
}


@pytest.mark.parametrize("theirs", INVALID_MANIFESTS.values(), ids=INVALID_MANIFESTS)
def test_an_artifact_with_an_invalid_manifest_is_made_again(tmp_path, made, theirs):
    store = Store(tmp_path)
    folder = store.get("teacher", MADE_FROM, write).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = theirs if isinstance(theirs, list) else manifest | theirs
    (folder / "manifest.json").write_text(json.dumps(changed))
    assert store.find("teacher", MADE_FROM) is None
    assert (store.get("teacher", MADE_FROM, write).folder / "weights").read_text() == "1 2 3"
    assert made() == ["made", "made"]


@pytest.mark.parametrize("way", ["../../../of the user", "{root}/of the user", "link/of the user"])
def test_a_manifest_deletes_nothing_outside_its_folder(tmp_path, made, way):
    theirs = tmp_path / "of the user"
    theirs.write_text("years of work")
    store = Store(tmp_path)
    folder = store.get("teacher", MADE_FROM, write).folder
    (folder / "link").symlink_to(tmp_path)
    assert (folder / way.format(root=tmp_path)).read_text() == "years of work"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][way.format(root=tmp_path)] = "another checksum"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert (store.get("teacher", MADE_FROM, write).folder / "weights").read_text() == "1 2 3"
    assert theirs.read_text() == "years of work"
    assert made() == ["made", "made"]


def test_links_in_a_partial_folder_are_not_followed(tmp_path):
    theirs = tmp_path / "of the user"
    theirs.write_text("years of work")
    partial = Store(tmp_path).folder("teacher", MADE_FROM)
    partial = partial.with_name(f"{partial.name}.partial")
    partial.mkdir(parents=True)
    (partial / "weights").symlink_to(theirs)
    assert (Store(tmp_path).get("teacher", MADE_FROM, write).folder / "weights").is_file()
    assert theirs.read_text() == "years of work"


def test_a_partial_folder_that_is_a_link_is_not_followed(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "text.partial").write_text("years of work")
    folder = Store(tmp_path).folder("teacher", MADE_FROM)
    folder.parent.mkdir(parents=True)
    folder.with_name(f"{folder.name}.partial").symlink_to(theirs)
    Store(tmp_path).get("teacher", MADE_FROM, write)
    assert [file.name for file in theirs.iterdir()] == ["text.partial"]


def test_a_file_replaced_by_a_folder_or_a_device_is_made_again(tmp_path):
    folder = Store(tmp_path).get("teacher", MADE_FROM, write).folder
    for change in (lambda file: file.mkdir(), lambda file: file.symlink_to("/dev/zero")):
        (folder / "weights").unlink()
        change(folder / "weights")
        again = Store(tmp_path).get("teacher", MADE_FROM, write).folder / "weights"
        assert again.read_text() == "1 2 3"


def test_a_class_that_moves_to_another_module_keeps_its_keys():
    before = {"loss": {"_target_": "lightning_distill.losses.fused.Objective", "alpha": 1}}
    after = {"loss": {"_target_": "lightning_distill.losses.objective.Objective", "alpha": 1}}
    renamed = {"loss": {"_target_": "lightning_distill.losses.objective.Other", "alpha": 1}}
    foreign = {"loss": {"_target_": "plugin.losses.Objective", "alpha": 1}}
    assert key_of(before) == key_of(after)
    assert len({key_of(one) for one in (before, renamed, foreign)}) == 3


def test_a_function_that_hydra_looks_up_keeps_its_key_when_it_moves():
    def key(path, target="hydra.utils.get_method"):
        return key_of({"divergence": {"_target_": target, "path": path}})

    assert key("lightning_distill.losses.kl") == key("lightning_distill.elsewhere.kl")
    assert key("lightning_distill.losses.kl") != key("lightning_distill.losses.mse")
    assert key("plugin.losses.kl") != key("plugin.elsewhere.kl")


def test_other_text_that_looks_like_a_module_counts_as_it_is():
    """The path of data, in a node that has a `_target_` too."""
    paths = ("lightning_distill.old.jsonl", "lightning_distill.new.jsonl")
    nodes = [{"_target_": "lightning_distill.data.CausalLM", "path": path} for path in paths]
    assert key_of({"data": nodes[0]}) != key_of({"data": nodes[1]})
    assert key_of({"name": paths[0]}) != key_of({"name": paths[1]})
