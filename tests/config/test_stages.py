"""A stage is declared once, in the package or outside of it."""

from importlib import import_module

import pytest

from lightning_distill.config.stage_lookup import find_stage
from lightning_distill.errors import ConfigError
from lightning_distill.stages import STAGES, Stage

SEEN = []


def record(settings, job):
    SEEN.append((settings["seed"], job.name))


MY_STAGE = Stage(f"{__name__}.record", "record the seed")


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_be_imported(name):
    module, _, function = STAGES[name].entry.rpartition(".")
    assert callable(getattr(import_module(module), function))
    assert STAGES[name].help


def test_a_stage_can_be_added_from_outside_the_package(in_process, monkeypatch, tmp_path):
    command = (f"stage={__name__}.MY_STAGE", "seed=7", f"paths.outputs={tmp_path}")
    refused = in_process(*command, expect=2)
    assert f"put LIGHTNING_DISTILL_ALLOW={__name__} in front" in refused.stderr
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", __name__)
    in_process(*command)
    assert SEEN == [(7, "distill")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distil", "Did you mean distill?"),
        (["distill"], "does not exist"),
        (f"{__name__}.record", "is not a lightning_distill.stages.Stage"),
        (f"{__name__}.nothing", "cannot be imported"),
    ],
)
def test_another_name_is_refused(name, message, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", __name__)
    with pytest.raises(ConfigError, match=message):
        find_stage(name)
