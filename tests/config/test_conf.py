"""conf/ mirrors the code. Files are found by a glob, so a new one is held to the same."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from lightning_distill.config.catalog import CONF
from lightning_distill.experiment.builder import OURS as OF_TRAINER
from lightning_distill.experiment.builder import TRAINING

FILES = sorted(f.relative_to(CONF) for f in CONF.rglob("*.yaml"))
GROUPS = [f for f in FILES if len(f.parts) > 1 and f.parts[0] != "hydra"]
OURS = "lightning_distill."
RESERVED = {"_target_", "_partial_", "defaults"}  # Hydra's own


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def targets(node):
    """Every `_target_`, and every path handed to Hydra's get_class and get_method."""
    if isinstance(node, DictConfig):
        for key in node:
            if OmegaConf.is_missing(node, key):
                continue
            if key == "_target_" or (key == "path" and "_target_" in node and OURS in node[key]):
                yield node
            if OmegaConf.is_config(node._get_node(key)):
                yield from targets(node[key])


def locate(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("file", GROUPS, ids=str)
def test_every_option_composes(file):
    group, option = "/".join(file.parts[:-1]), file.stem
    if group == "model":
        group = "student"
    before = ["experiment=demo"] if group == "experiment/job" else []
    cfg = composed(*before, f"{group}={option}")
    OmegaConf.to_container(cfg.student, resolve=True)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_target_imports_and_takes_the_keys_beside_it(file):
    for node in targets(OmegaConf.load(CONF / file)):
        if file.parts[0] == "hydra":  # plugins, which are extras
            pytest.importorskip(node._target_.split(".")[0])
            pytest.importorskip(".".join(node._target_.split(".")[:2]))
        target = locate(node._target_)
        parameters = inspect.signature(target).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        unknown = set(map(str, node)) - set(parameters) - RESERVED - TRAINING - set(OF_TRAINER)
        assert not unknown, f"{file}: {node._target_} does not take {unknown}"


@pytest.mark.parametrize("file", GROUPS, ids=str)
def test_a_group_is_named_after_the_module_that_holds_its_targets(file):
    for node in targets(OmegaConf.load(CONF / file)):
        path = node.path if node._target_.startswith("hydra.utils.get_") else node._target_
        if path.startswith(OURS):
            place = path.removeprefix(OURS).split(".")[0]
            elsewhere = {"loss": ["losses"], "teacher": ["models"], "trainer": ["distributed"]}
            assert place.startswith(file.parts[0]) or place in elsewhere[file.parts[0]]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_opens_with_what_the_choice_means(file):
    lines = (CONF / file).read_text().splitlines()
    if file.parts[0] == "hydra":
        return
    assert lines[0].startswith("# ")
    if lines[0] == "# @package _global_":
        assert lines[1].startswith("# ")


def test_every_size_serves_both_roles():
    options = {
        g: {f.stem for f in GROUPS if f.parts[0] == g} for g in ("model", "teacher", "student")
    }
    # A teacher can also be what no student can: behind a server.
    assert options["model"] == options["student"] == options["teacher"] - {"served"}
    for name in options["model"]:
        cfg = composed(f"teacher={name}", f"student={name}")
        assert cfg.teacher._target_ == cfg.student._target_


def test_the_teachers_training_is_its_own():
    cfg = composed("optimizer.lr=1e-4", "schedule=constant", "seed=5")
    assert cfg.optimizer.lr == 1e-4
    assert cfg.teacher.optimizer.lr != 1e-4
    assert cfg.teacher.schedule.max_lr == cfg.teacher.optimizer.lr
    assert cfg.teacher.seed == 0
    assert composed("optimizer.lr=1e-4").schedule.max_lr == 1e-4


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_jobs_of_an_experiment_have_settings_of_their_own(file):
    """What a job's file sets is not set again by the experiment's."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"experiment={file.stem}"]
        cfg = compose("config", overrides, return_hydra_config=True)
        params = cfg.hydra.sweeper.get("params") or {}
        jobs = str(params.get("experiment/job", "")).split(",")
        jobs = [job for job in jobs if job]
        settings = [compose("config", [*overrides, f"experiment/job={job}"]) for job in jobs]
    texts = [OmegaConf.to_yaml(one) for one in settings]
    assert len(set(texts)) == len(jobs)
    for job, one in zip(jobs, settings, strict=True):
        (given,) = (OmegaConf.load(f) for f in [CONF / "experiment" / "job" / f"{job}.yaml"])
        for key in ("student", "loss"):
            for name, value in (given.get(key) or {}).items():
                assert one[key][name] == value or OmegaConf.is_config(value), f"{job}: {key}.{name}"


def test_hydra_finds_the_configs_as_a_module():
    """As a user's own program does, which knows no folder; resolvers are registered with it."""
    overrides = ["experiment=demo", "student=xs", "loss=reverse_kl"]
    with initialize_config_module("lightning_distill.conf", version_base="1.3"):
        cfg = compose("config", overrides)
    left_out = {"sweep": {"started": ""}}  # the time
    expected = OmegaConf.merge(composed(*overrides), left_out)
    assert OmegaConf.to_container(OmegaConf.merge(cfg, left_out), resolve=True) == (
        OmegaConf.to_container(expected, resolve=True)
    )
    assert cfg.optimizer.lr == 6e-3


def test_hydra_finds_them_in_a_process_that_imported_nothing_of_the_package():
    code = (
        "from hydra import compose, initialize_config_module as module\n"
        "with module('lightning_distill.conf', version_base='1.3'):\n"
        "    print(compose('config', ['student=xs']).optimizer.lr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.stdout, done.returncode) == ("0.006\n", 0), done.stderr
