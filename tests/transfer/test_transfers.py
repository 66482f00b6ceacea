"""What every transfer declares, and one that is defined outside the package."""

import json
import sys

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

import lightning_distill.transfer
from lightning_distill.transfer.base import Transfer

NAMES = {"online": "Online", "cached": "Cached", "sequence": "Sequence", "on_policy": "OnPolicy"}


@pytest.mark.parametrize("name", lightning_distill.transfer.__all__)
def test_a_transfer_inherits_from_the_interface_alone(name):
    assert getattr(lightning_distill.transfer, name).__bases__ == (Transfer,)


def test_only_what_is_prepared_counts_units():
    declared = {name: get_class(f"lightning_distill.transfer.{c}") for name, c in NAMES.items()}
    assert {n: c.prepares for n, c in declared.items() if c.prepares} == {
        "cached": "predictions",
        "sequence": "text",
    }
    assert [n for n, c in declared.items() if c.supervises_by_text] == ["sequence"]
    assert [n for n, c in declared.items() if not c.holds_teacher] == ["cached"]


class Counted(Transfer):
    """Online, with a count of the batches."""

    batches = 0

    def transform_batch(self, module, batch):
        Counted.batches += 1
        return batch


def test_a_transfer_from_outside_the_package_is_used_like_the_others(
    in_process, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "my_transfers", sys.modules[__name__])
    monkeypatch.setattr(Counted, "__module__", "my_transfers")
    monkeypatch.setenv("LIGHTNING_DISTILL_ALLOW", "my_transfers.Counted")
    settings = ["transfer._target_=my_transfers.Counted", f"paths.outputs={tmp_path}"]
    in_process(*settings, f"hydra.run.dir={tmp_path / 'run'}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    steps = OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml").student.max_steps
    assert Counted.batches == steps
